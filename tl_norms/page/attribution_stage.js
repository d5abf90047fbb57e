// What a page of an attribution draws: both figures, the list of edges, and what is under the pointer.

let hover = null,
  graph = null,
  grid = null,
  headPanel = null;

function buildStage() {
  $("stage").className = "attribution";
  const figureOf = (name, title) => {
    const figure = make("figure", name),
      canvas = make("canvas", "map"),
      scroll = make("div", "scroll");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    scroll.append(canvas);
    figure.append(make("figcaption"), scroll, make("div", "foot"));
    figure.firstChild.append(make("b", "", title[0]), " " + title[1]);
    $("stage").append(figure);
    return canvas;
  };
  const one = figureOf("graph", [
    "Layer by layer",
    "what sits at each position, and the strongest edges between layers",
  ]);
  const two = figureOf("grid", ["Heads", "and feed-forwards"]);
  const detail = make("section", "detail");
  detail.setAttribute("aria-label", "Edges");
  $("stage").append(detail);
  for (const [canvas, found] of [
    [one, underGraph],
    [two, underGrid],
  ]) {
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return found(event.clientX - box.left, event.clientY - box.top);
    };
    canvas.onpointermove = (event) => {
      hover = at(event);
      canvas.style.cursor = hover ? "pointer" : "";
      paint();
      showTip(tipOf(hover), pointBox(event));
    };
    canvas.onpointerleave = canvas.onblur = () => {
      hover = null;
      paint();
      hideTip();
    };
    canvas.onclick = (event) => {
      act(at(event));
      hover = at(event);
      showTip(tipOf(hover), pointBox(event));
    };
  }
  one.onkeydown = (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (by) {
      event.preventDefault();
      const from = hover && hover.cut !== undefined ? hover : { i: Math.max(state.pin, 0) - by[0], cut: 0 - by[1] };
      hover = { i: clamp(from.i + by[0], 0, N - 1), cut: clamp(from.cut + by[1], 0, CUTS - 1) };
      paint();
      const box = one.getBoundingClientRect(),
        x = box.left + graph.x(hover.i),
        y = box.top + graph.y(hover.cut);
      showTip(tipOf(hover), { left: x, right: x, top: y, bottom: y + graph.cell });
    }
    if (event.key === "Enter" && hover) act(hover);
  };
  two.onkeydown = (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (by) {
      event.preventDefault();
      const from = hover && hover.grid ? hover : { head: -by[0], row: -by[1] };
      hover = {
        grid: true,
        head: clamp(from.head + by[0], 0, HEADS),
        row: clamp(from.row + by[1], 0, D.layers.length - 1),
      };
      paint();
      const box = two.getBoundingClientRect(),
        x = box.left + grid.x(hover.head),
        y = box.top + grid.y(hover.row);
      showTip(tipOf(hover), { left: x, right: x + grid.w, top: y, bottom: y + grid.h });
    }
    if (event.key === "Enter" && hover) act(hover);
  };
}
const pointBox = (event) => ({
  left: event.clientX,
  right: event.clientX + 4,
  top: event.clientY,
  bottom: event.clientY + 4,
});

function renderStage() {
  const [one, two] = $("stage").querySelectorAll("figure"),
    wide = $("stage").clientWidth > 900;
  const side = clamp((HEADS + 2) * 18 + 20, 150, 260);
  $("stage").style.gridTemplateColumns = wide ? `minmax(0, 1fr) ${side}px 292px` : "minmax(0, 1fr)";
  graph = graphLayout(one.clientWidth);
  grid = gridLayout(two.clientWidth, wide ? graph : null);
  if (wide) one.style.minWidth = "0";
  one.lastChild.replaceChildren(
    state.scale === "cut"
      ? make("span", "soft", "Each row on its own scale")
      : colourBar("signed", TOP_STREAM, "contribution of a position after each layer"),
  );
  two.lastChild.replaceChildren(colourBar("signed", TOP_HEAD, "heads"), colourBar("signed", TOP_FFN, "ff"));
  one
    .querySelector("canvas")
    .setAttribute(
      "aria-label",
      `Contributions of ${N} positions at ${CUTS} cuts, and ${state.edges} edges. Move with the arrow keys, pin with Enter.`,
    );
  two
    .querySelector("canvas")
    .setAttribute(
      "aria-label",
      `Contributions of ${HEADS} heads in ${D.layers.length} layers. Move with the arrow keys, choose with Enter.`,
    );
  paint();
  renderDetail();
}
function paint() {
  const [one, two] = $("stage").querySelectorAll("figure canvas");
  drawGraph(canvasPen(one, graph.width, graph.height), graph);
  drawGrid(canvasPen(two, grid.width, grid.height), grid);
}

// What is at a point: an edge, a cell of a cut, a token's label.
function underGraph(x, y) {
  const i = Math.floor((x - graph.left) / graph.column);
  if (i < 0 || i >= N) return null;
  if (y > graph.bottom) return { i };
  for (let cut = 0; cut < CUTS; cut++)
    if (y >= graph.y(cut) - 1 && y <= graph.y(cut) + graph.cell + 1) return { cut, i };
  let best = null,
    least = 7;
  for (const e of new Set([...trail(), ...edgesShown(state.edges)])) {
    const y1 = graph.y(E.layer[e]),
      y2 = graph.y(E.layer[e] + 1) + graph.cell,
      t = (y1 - y) / (y1 - y2);
    if (t < 0 || t > 1) continue;
    const part = graph.bent ? bezierTime(t) : t,
      along = graph.bent ? 3 * part * part - 2 * part ** 3 : part;
    const far = Math.abs(x - (graph.x(E.key[e]) + (graph.x(E.query[e]) - graph.x(E.key[e])) * along));
    if (far < least) {
      least = far;
      best = e;
    }
  }
  return best === null ? null : { edge: best };
}
// The time at which the curve of an edge has come a share of its height: y runs as 1.5 t (1 - t) + t³, twice bent.
function bezierTime(share) {
  let low = 0,
    high = 1;
  for (let i = 0; i < 30; i++) {
    const t = (low + high) / 2,
      y = 1.5 * t * (1 - t) ** 2 + 1.5 * t * t * (1 - t) + t ** 3;
    if (y < share) low = t;
    else high = t;
  }
  return low;
}
function underGrid(x, y) {
  for (let row = 0; row < D.layers.length; row++) {
    if (y < grid.y(row) - 1 || y > grid.y(row) + grid.h + 1) continue;
    for (let head = 0; head <= HEADS; head++)
      if (x >= grid.x(head) && x < grid.x(head) + grid.wide(head)) return { grid: true, row, head };
  }
  return null;
}
function act(found) {
  if (!found) return;
  if (found.edge !== undefined) return follow(found.edge);
  if (found.grid) {
    if (found.head === HEADS) return;
    const name = headName(D.layers[found.row], found.head);
    return set({ head: state.head === name ? "" : name, trail: "" });
  }
  set({ pin: state.pin === found.i ? -1 : found.i, trail: "" });
}
function tipOf(found) {
  if (!found) return null;
  if (found.edge !== undefined) {
    const e = found.edge;
    return {
      head: `${headName(E.layer[e], E.head[e])}: ${edgeText(e)}`,
      rows: [["edge", signed(E.value[e]), `rank ${RANK.get(e)} of ${COUNT}`]],
    };
  }
  if (found.grid) {
    if (found.head === HEADS)
      return {
        head: `feed-forward of layer ${D.layers[found.row]}`,
        rows: [["what it wrote, all positions", signed(FFN[found.row]), ""]],
      };
    const all = numbers(D.heads),
      x = slice(D.heads, found.row)[found.head],
      { rank, of } = standing(x, all);
    const row = standing(x, slice(D.heads, found.row));
    return {
      head: headName(D.layers[found.row], found.head),
      rows: [
        ["all it moved", signed(x), `rank ${rank} of ${of}`],
        ["in its layer", percent(row.share), `rank ${row.rank} of ${row.of}`],
      ],
    };
  }
  if (found.cut === undefined) return PAGE.tip(found.i);
  const x = stream(found.cut)[found.i],
    { rank, of, share } = standing(x, stream(found.cut)),
    rows = [["contribution", signed(x), `${percent(share)} of the row \u00b7 rank ${rank} of ${of}`]];
  const layer = found.cut,
    below = rowOf.get(layer - 1),
    above = rowOf.get(layer);
  if (below !== undefined)
    rows.push([`written by feed-forward ${layer - 1}`, signed(slice(D.ffn, below)[found.i]), ""]);
  if (above !== undefined) rows.push([`passes by attention ${layer}`, signed(slice(D.bypass, above)[found.i]), ""]);
  return { head: `${LABELS[found.i]} (${found.i}) ${cutName(found.cut)}`, rows };
}
const cutName = (cut) =>
  cut === 0 ? "before the first layer" : cut === CUTS - 1 ? "after the last layer" : `before layer ${cut}`;
