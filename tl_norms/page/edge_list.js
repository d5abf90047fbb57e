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
  const goesOn = last !== undefined && E.query[e] === E.key[last] && E.layer[e] < E.layer[last];
  set({ trail: (goesOn ? [...before, e] : [e]).map(edgeId).join("_") });
}

function edgeButton(e, chosen = false, top = TOP_EDGE) {
  const button = make("button", "edge"),
    value = make("span", "value", tabular(E.value[e]));
  const bar = make("i"),
    name = make("span", "head", headName(E.layer[e], E.head[e]));
  bar.style.width = 100 * clamp(Math.abs(E.value[e]) / (top || 1), 0, 1) + "%";
  bar.style.background = edgeColour(e);
  button.append(name, make("span", "pair", edgeText(e)), value, bar);
  button.title = `position ${E.key[e]} \u2192 position ${E.query[e]}`;
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
      before = arriving(E.key[last], E.layer[last], 7);
    parts.push(
      make("h2", "", "Followed back"),
      ...followed.map((e) => edgeButton(e, true)),
      make(
        "h2",
        "",
        before.length
          ? `What reached ${quoted(E.key[last])} before layer ${E.layer[last]}`
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
        head
          ? `Head ${state.head}: ${signed(slice(D.heads, rowOf.get(head.layer))[head.head])}`
          : `Strongest edges ${of}`,
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
function headMap({ layer, head }) {
  const values = new Float64Array(N * N);
  for (let e = 0; e < COUNT; e++)
    if (E.layer[e] === layer && E.head[e] === head) values[E.query[e] * N + E.key[e]] = E.value[e];
  return { rows: N, columns: N, values, get: (q, k) => values[q * N + k] };
}
const edgeLook = (m) => {
  const top = largest(m.values) || 1;
  return {
    fill: (q, k) => (D.edges.causal && k > q ? null : colour("signed", m.get(q, k) / top)),
    hover: null,
    hits,
    pin: state.pin < 0 ? null : state.dir === "into" ? { q: state.pin, k: -1 } : { q: -1, k: state.pin },
  };
};
function paintHead() {
  const { canvas, head } = headPanel,
    m = headMap(head),
    layout = mapLayout(document.querySelector(".detail").clientWidth, m, { rows: LABELS, columns: LABELS, most: 24 });
  drawMap(canvasPen(canvas, layout.width, layout.height), m, layout, edgeLook(m));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Edges of head ${state.head}`);
  canvas.after(colourBar("signed", largest(m.values)));
  canvas.onpointermove = (event) => {
    const box = canvas.getBoundingClientRect(),
      at = under(layout, m, event.clientX - box.left, event.clientY - box.top);
    if (!at || at.q === undefined || at.k === undefined || (D.edges.causal && at.k > at.q)) return hideTip();
    const x = m.get(at.q, at.k),
      { rank, of, share } = standing(
        x,
        Array.from({ length: N }, (_, k) => m.get(at.q, k)),
      );
    showTip(
      {
        head: `${LABELS[at.k]} \u2192 ${LABELS[at.q]}`,
        rows: [["edge of " + state.head, signed(x), `${percent(share)} of the row \u00b7 rank ${rank} of ${of}`]],
      },
      pointBox(event),
    );
  };
  canvas.onpointerleave = hideTip;
}
