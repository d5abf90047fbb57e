// The numbers of a page of norms: families of maps, and which of them stand side by side.

const STEPS = { attn: "attention", res: "residual", ln: "layer norm", ff: "feed-forward", cross: "cross-attention" };
const spelled = (scope) =>
  scope
    .split("_")
    .map((step) => STEPS[step] || step)
    .join(" + ");
const AFTER = D.scopes.find((scope) => scope.endsWith("_ff") && D.scopes.includes(D.chain[D.chain.indexOf(scope) - 1]));
const BEFORE = AFTER && D.chain[D.chain.indexOf(AFTER) - 1];
const FIRST_FF = D.chain.find((scope) => scope.endsWith("_ff"));

// --- the numbers of a family of maps ---------------------------------------------------------------------------

const kept = new Map();
const memo = (key, make) => {
  if (!kept.has(key)) kept.set(key, make());
  return kept.get(key);
};

// A family is "weight", "norm:<scope>", "head weight:<head>", "head:<head>" or "change"; one map per layer.
function mapOf(family, row) {
  return memo(`${family}|${row}`, () => {
    const [kind, which] = family.split(":");
    if (kind === "weight") return square(slice(D.attention, row), N);
    if (kind === "norm") return square(slice(D.maps[which], row), D.widths[which]);
    if (kind === "head weight") return square(slice(D.heads.weights, row, Number(which)), N);
    if (kind === "head") {
      const weights = mapOf("head weight:" + which, row),
        values = slice(D.heads.values, row, Number(which));
      return matrixOf(N, N, (q, k) => weights.get(q, k) * values[k]);
    }
    const after = mapOf("norm:" + AFTER, row),
      before = mapOf("norm:" + BEFORE, row);
    const shares = [after, before].map((m) =>
      Array.from({ length: N }, (_, q) =>
        sum([...m.values.subarray(q * m.columns, (q + 1) * m.columns)].filter(Number.isFinite)),
      ),
    );
    return matrixOf(
      N,
      after.columns,
      (q, k) => after.get(q, k) / (shares[0][q] || 1) - before.get(q, k) / (shares[1][q] || 1),
    );
  });
}
const isSigned = (scope) => memo("signed|" + scope, () => numbers(D.maps[scope]).some((x) => x < 0));
const kindOf = (family) =>
  family === "change"
    ? "signed"
    : family.includes("weight")
      ? "weight"
      : family.startsWith("norm:") && isSigned(family.slice(5))
        ? "signed"
        : "norm";

const off = (family, row) =>
  memo(`off|${family}|${row}`, () => {
    const m = mapOf(family, row);
    let top = 0;
    for (let q = 0; q < N; q++)
      for (let k = 0; k < m.columns; k++) if (q !== k) top = Math.max(top, Math.abs(m.get(q, k)) || 0);
    return top;
  });
const on = (family, row) => memo(`on|${family}|${row}`, () => largest(mapOf(family, row).values));

// Whether what positions keep of themselves would drown the rest, in most layers.
function drowns(family) {
  return memo("drowns|" + family, () => {
    const rows = D.layers.map((_, row) => off(family, row) < on(family, row) / 2).filter(Boolean).length;
    return N > 1 && 2 * rows > D.layers.length;
  });
}
const diagonalShown = () =>
  state.diagonal === "on" || (state.diagonal === "auto" && !drowns(panels().find((p) => p.leads).family));
const topOf = (family, row) => (diagonalShown() ? on(family, row) : off(family, row));
const topOfAll = (family) => Math.max(...D.layers.map((_, row) => topOf(family, row)));
function rowTop(m, q) {
  let top = 0;
  for (let k = 0; k < m.columns; k++) if (q !== k || diagonalShown()) top = Math.max(top, Math.abs(m.get(q, k)) || 0);
  return top;
}

const points = (x) => (Number.isFinite(x) ? (x > 0 ? "+" : x < 0 ? "\u2212" : "") + percent(Math.abs(x)) : "\u2013"); // of a share

// --- what is shown -------------------------------------------------------------------------------------------------

const layerRow = () => D.layers.indexOf(state.layer);
const ratiosOf = (block) => (block ? slice(block, layerRow()) : null);

// The maps side by side. One leads: it decides about the diagonal, fills the overview, and colours the sentence.
function panels() {
  const head = `L${state.layer}H${state.head}`,
    row = layerRow();
  if (state.view === "heads")
    return [
      { family: "head weight:" + state.head, title: "Attention weight", what: `${head}, \u03b1`, column: "weight" },
      {
        family: "head:" + state.head,
        title: "Weighted value norm",
        what: `${head}, \u2016\u03b1f(x)\u2016`,
        column: "norm",
        leads: true,
      },
    ];
  if (state.view === "ff")
    return [
      {
        family: "norm:" + BEFORE,
        title: "Before the feed-forward",
        what: BEFORE,
        column: "before",
        ratios: ratiosOf(D.ratios[BEFORE]),
      },
      {
        family: "norm:" + AFTER,
        title: "After the feed-forward",
        what: AFTER,
        column: "after",
        ratios: ratiosOf(D.ratios[AFTER]),
        leads: true,
      },
      {
        family: "change",
        title: "Change",
        what: "in the share of the row",
        column: "change_of_row_share",
        colours: true,
      },
    ];
  const norm = {
    family: "norm:" + state.scope,
    title: "Norm",
    what: state.scope,
    column: state.scope,
    ratios: ratiosOf(D.ratios[state.scope]),
    leads: true,
  };
  if (!D.attention) return [norm];
  return [
    {
      family: "weight",
      title: "Attention weight",
      what: "mean over heads",
      column: "weight",
      ratios: ratiosOf(D.weight_ratios),
    },
    norm,
  ];
}
const leader = () => panels().find((panel) => panel.leads);
const colouring = () => panels().find((panel) => panel.colours) || leader();

function panelTop(panel, row = layerRow()) {
  return state.scale === "all" ? topOfAll(panel.family) : topOf(panel.family, row);
}
function fillOf(panel, row = layerRow()) {
  const m = mapOf(panel.family, row),
    kind = kindOf(panel.family),
    top = panelTop(panel, row),
    own = diagonalShown();
  const tops = state.scale === "row" ? Array.from({ length: N }, (_, q) => rowTop(m, q)) : null;
  return (q, k) => {
    // undefined: no pair; null: left out; else a share of the largest
    const x = m.get(q, k);
    if (!pairExists(q, k)) return undefined;
    if ((!own && q === k) || !Number.isFinite(x)) return null;
    const whole = tops ? tops[q] : top;
    return colourAt(kind, whole ? x / whole : 0);
  };
}
