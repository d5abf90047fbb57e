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
      const first = { i: Math.max(state.pin, 0) - by[0], row: BASE - by[1] },
        from = hover && hover.row !== undefined && !hover.grid ? hover : first,
        i = clamp(from.i + by[0], 0, COLUMNS - 1);
      hover = { i, row: clamp(from.row + by[1], i < N ? BASE : 0, ROWS - 1) };
      paint();
      const box = one.getBoundingClientRect(),
        x = box.left + graph.x(hover.i),
        y = box.top + graph.y(hover.row);
      showTip(tipOf(hover), { left: x, right: x, top: y, bottom: y + graph.cell });
    }
    if (event.key === "Enter" && hover) act(hover);
  };
  two.onkeydown = (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (by) {
      event.preventDefault();
      const from = hover && hover.grid ? hover : { column: -by[0], row: -by[1] };
      hover = {
        grid: true,
        column: clamp(from.column + by[0], 0, FF),
        row: clamp(from.row + by[1], 0, GRID.length - 1),
      };
      paint();
      const box = two.getBoundingClientRect(),
        x = box.left + grid.x(hover.column),
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
  const side = gridRoom();
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
      `Contributions of ${COLUMNS} positions at ${ROWS} cuts, and ${state.edges} edges. Move with the arrow keys, pin with Enter.`,
    );
  two
    .querySelector("canvas")
    .setAttribute(
      "aria-label",
      `Contributions of ${FF} heads in ${GRID.length} layers. Move with the arrow keys, choose with Enter.`,
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
  const i = graph.at(x);
  if (y > graph.bottom) return i < 0 ? null : { i };
  for (let row = 0; row < ROWS && i >= 0; row++)
    if (Number.isFinite(VALUES[row][i]) && y >= graph.y(row) - 1 && y <= graph.y(row) + graph.cell + 1)
      return { row, i };
  let best = null,
    least = 7;
  for (const e of new Set([...trail(), ...edgesShown(state.edges)])) {
    const y1 = graph.y(E.row[e]),
      y2 = graph.y(E.row[e] + 1) + graph.cell,
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
  for (let row = 0; row < GRID.length; row++) {
    if (y < grid.y(row) - 1 || y > grid.y(row) + grid.h + 1) continue;
    for (let column = 0; column <= FF; column++)
      if (x >= grid.x(column) && x < grid.x(column) + grid.wide(column))
        return gridCell(row, column) && { grid: true, row, column };
  }
  return null;
}
function act(found) {
  if (!found) return;
  if (found.edge !== undefined) return follow(found.edge);
  if (found.grid) {
    const cell = gridCell(found.row, found.column);
    if (!cell || cell.ff) return;
    const name = headName(cell.kind, cell.layer, cell.head);
    return set({ head: state.head === name ? "" : name, trail: "" });
  }
  set({ pin: state.pin === found.i ? -1 : found.i, trail: "" });
}
const ABOUT_HEAD = { L: "", X: "cross-attention, ", E: "the encoder, " };
function tipOf(found) {
  if (!found) return null;
  if (found.edge !== undefined) {
    const e = found.edge;
    return {
      head: `${edgeName(e)}: ${edgeText(e)}`,
      rows: [["edge", signed(E.value[e]), `rank ${RANK.get(e)} of ${COUNT}`]],
    };
  }
  if (found.grid) {
    const cell = gridCell(found.row, found.column);
    if (!cell) return null;
    if (cell.ff)
      return {
        head: `feed-forward of layer ${cell.layer}`,
        rows: [["what it wrote, all positions", signed(cell.value), ""]],
      };
    const { heads, numbers: layers } = KINDS[cell.kind],
      { rank, of } = standing(cell.value, numbers(heads)),
      row = standing(cell.value, slice(heads, layers.indexOf(cell.layer)));
    return {
      head: ABOUT_HEAD[cell.kind] + headName(cell.kind, cell.layer, cell.head),
      rows: [
        ["all it moved", signed(cell.value), `rank ${rank} of ${of}`],
        ["in its layer", percent(row.share), `rank ${row.rank} of ${row.of}`],
      ],
    };
  }
  if (found.row === undefined) return PAGE.tip(found.i);
  const x = VALUES[found.row][found.i],
    { rank, of, share } = standing(x, VALUES[found.row]),
    at = `${KEYS[found.i]} (${place(found.i)})`;
  if (!Number.isFinite(x)) return null;
  const rows = [["contribution", signed(x), `${percent(share)} of the row \u00b7 rank ${rank} of ${of}`]];
  if (found.row < BASE) return { head: `${at} in the encoder, ${cutName(found.row, BASE)}`, rows };
  const layer = found.row - BASE;
  if (found.i >= N)
    return { head: `${at} in the encoder\u2019s output, still to be read ${cutName(layer, CUTS)}`, rows };
  const below = rowOf.get(layer - 1),
    above = rowOf.get(layer);
  if (below !== undefined)
    rows.push([`written by feed-forward ${layer - 1}`, signed(slice(D.ffn, below)[found.i]), ""]);
  if (above !== undefined) rows.push([`passes by attention ${layer}`, signed(slice(D.bypass, above)[found.i]), ""]);
  return { head: `${at} ${cutName(layer, CUTS)}`, rows };
}
const cutName = (cut, cuts) =>
  cut === 0 ? "before the first layer" : cut === cuts - 1 ? "after the last layer" : `before layer ${cut}`;
