// The edges as a list: the strongest, those of a head with its map, or those followed back.

// Begin with an edge, or go on with one that arrived where the last one began.
function follow(e) {
  const before = trail(),
    at = before.indexOf(e);
  if (at >= 0)
    return set({
      trail: before
        .slice(0, at + 1)
        .map(edgeId)
        .join("_"),
    });
  const last = before[before.length - 1];
  const goesOn = last !== undefined && E.query[e] === E.key[last] && E.row[e] < E.row[last];
  set({ trail: (goesOn ? [...before, e] : [e]).map(edgeId).join("_") });
}

function edgeButton(e, chosen = false, top = TOP_EDGE) {
  const button = make("button", "edge"),
    value = make("span", "value", tabular(E.value[e]));
  const bar = make("i"),
    name = make("span", "head", edgeName(e));
  bar.style.width = 100 * clamp(Math.abs(E.value[e]) / (top || 1), 0, 1) + "%";
  bar.style.background = edgeColour(e);
  button.append(name, make("span", "pair", edgeText(e)), value, bar);
  button.title = `position ${place(E.key[e])} \u2192 position ${place(E.query[e])}`;
  button.setAttribute("aria-pressed", String(chosen));
  button.onclick = () => follow(e);
  button.onpointerenter = button.onfocus = () => {
    hover = { edge: e };
    paint();
  };
  button.onpointerleave = button.onblur = () => {
    hover = null;
    paint();
  };
  return button;
}
function renderDetail() {
  const detail = document.querySelector(".detail"),
    followed = trail(),
    head = headOf(),
    parts = [];
  headPanel = null;
  if (followed.length) {
    const back = make("button", "link", "Back to the strongest edges");
    back.onclick = () => set({ trail: "" });
    const last = followed[followed.length - 1],
      before = arriving(E.key[last], E.row[last], 7);
    parts.push(
      make("h2", "", "Followed back"),
      ...followed.map((e) => edgeButton(e, true)),
      make(
        "h2",
        "",
        before.length
          ? `What reached ${quoted(E.key[last])} before ${E.kind[last] === "E" ? "the encoder\u2019s " : ""}layer ${E.layer[last]}`
          : `${quoted(E.key[last])}: nothing from other tokens reached it earlier`,
      ),
      ...before.map((e) => edgeButton(e)),
      make(
        "p",
        "soft",
        "Each number is that of the edge by itself, over all ways on from it: numbers of different layers do not add up.",
      ),
      back,
    );
  } else {
    const of = head
      ? state.head
      : state.pin >= 0
        ? state.dir === "into"
          ? "into " + quoted(state.pin)
          : "out of " + quoted(state.pin)
        : "";
    const list = edgesShown(head ? 6 : 14);
    parts.push(
      make(
        "h2",
        "",
        head ? `Head ${state.head}: ${signed(headValue(head.kind, head.layer, head.head))}` : `Strongest edges ${of}`,
      ),
    );
    if (head) {
      const figure = make("figure"),
        canvas = make("canvas", "map");
      figure.append(canvas);
      parts.push(
        make("p", "soft", "Its edges: what it moved from each source token (column) to each position (row)."),
        figure,
      );
      headPanel = { canvas, head };
    }
    parts.push(...list.map((e) => edgeButton(e, false, Math.abs(E.value[list[0]]))));
    if (!list.length) parts.push(make("p", "soft", "No edge of any size."));
    parts.push(
      make(
        "p",
        "soft",
        head ? "" : "Head, source token \u2192 position, and what it contributed. Click one to follow it back.",
      ),
    );
    if (head) {
      const back = make("button", "link", "All heads");
      back.onclick = () => set({ head: "" });
      parts.push(back);
    }
  }
  detail.replaceChildren(...parts);
  if (headPanel) paintHead();
}
// Its rows are queries, its columns keys; `labels` are those of both.
function headMap({ kind, layer, head }) {
  const of = KINDS[kind],
    [, rows, columns] = of.edges.shape,
    values = new Float64Array(rows * columns);
  for (let e = 0; e < COUNT; e++)
    if (E.kind[e] === kind && E.layer[e] === layer && E.head[e] === head)
      values[(E.query[e] - of.query) * columns + E.key[e] - of.key] = E.value[e];
  return {
    rows,
    columns,
    values,
    of,
    get: (q, k) => values[q * columns + k],
    labels: { rows: KEYS.slice(of.query, of.query + rows), columns: KEYS.slice(of.key, of.key + columns), most: 24 },
  };
}
const edgeLook = (m) => {
  const top = largest(m.values) || 1,
    into = state.dir === "into",
    at = state.pin - (into ? m.of.query : m.of.key),
    pinned = state.pin >= 0 && at >= 0 && at < (into ? m.rows : m.columns);
  return {
    fill: (q, k) => (m.of.edges.causal && k > q ? null : colour("signed", m.get(q, k) / top)),
    hover: null,
    hits: m.of.query === m.of.key ? new Set([...hits].map((i) => i - m.of.key)) : null,
    pin: !pinned ? null : into ? { q: at, k: -1 } : { q: -1, k: at },
  };
};
function paintHead() {
  const { canvas, head } = headPanel,
    m = headMap(head),
    layout = mapLayout(document.querySelector(".detail").clientWidth, m, m.labels);
  drawMap(canvasPen(canvas, layout.width, layout.height), m, layout, edgeLook(m));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Edges of head ${state.head}`);
  canvas.after(colourBar("signed", largest(m.values)));
  canvas.onpointermove = (event) => {
    const box = canvas.getBoundingClientRect(),
      at = under(layout, m, event.clientX - box.left, event.clientY - box.top);
    if (!at || at.q === undefined || at.k === undefined || (m.of.edges.causal && at.k > at.q)) return hideTip();
    const x = m.get(at.q, at.k),
      { rank, of, share } = standing(
        x,
        Array.from({ length: m.columns }, (_, k) => m.get(at.q, k)),
      );
    showTip(
      {
        head: `${m.labels.columns[at.k]} \u2192 ${m.labels.rows[at.q]}`,
        rows: [["edge of " + state.head, signed(x), `${percent(share)} of the row \u00b7 rank ${rank} of ${of}`]],
      },
      pointBox(event),
    );
  };
  canvas.onpointerleave = hideTip;
}
