// Two figures of an attribution: what sits at each position at every cut, with edges between; and heads by layer.

const TOP_STREAM = Math.max(...VALUES.map(largest)),
  TOP_HEAD = Math.max(...Object.values(KINDS).map((of) => largest(numbers(of.heads)))),
  TOP_EDGE = ORDER.length ? Math.abs(E.value[ORDER[0]]) : 0;
const FFN = D.layers.map((_, row) => sum([...slice(D.ffn, row)])),
  TOP_FFN = largest(FFN);
const rowTop = (row) => (state.scale === "cut" ? largest(VALUES[row]) : TOP_STREAM);

function graphLayout(width) {
  const left = 34,
    aside = M ? 16 : 0, // between the text and the source sentence
    column = (width - left - aside - 2) / COLUMNS,
    size = clamp(Math.floor(column) - 2, LABEL, 12);
  const named = M ? KEYS : LABELS,
    labels = Math.ceil(Math.min(84, Math.max(...named.map((t) => textWidth(t, size))))) + 10;
  const pitch = clamp(Math.floor(450 / ROWS), 13, 62),
    cell = Math.max(5, Math.round(pitch * 0.44));
  const top = 6,
    bottom = top + (ROWS - 1) * pitch + cell;
  const w = Math.min(column, 112),
    start = (i) => left + i * w + (i < N ? 0 : aside);
  return {
    left,
    column: w,
    size,
    pitch,
    cell,
    bent: pitch >= 26,
    top,
    bottom,
    width: left + w * COLUMNS + aside + 2,
    height: bottom + labels,
    every: Math.ceil(LABEL / w),
    named,
    start,
    x: (i) => start(i) + 0.5 * w,
    y: (row) => top + (ROWS - 1 - row) * pitch,
    at: (x) => {
      const i = Math.floor((x - left) / w);
      if (i >= 0 && i < N) return i;
      const beyond = N + Math.floor((x - start(N)) / w);
      return beyond >= N && beyond < COLUMNS ? beyond : -1;
    },
  };
}

const edgeWidth = (e) => 0.8 + 5 * Math.sqrt(Math.abs(E.value[e]) / (TOP_EDGE || 1));
const edgeColour = (e) => colour("signed", E.value[e] > 0 ? 0.62 : -0.62);

function drawGraph(pen, g) {
  const followed = trail(),
    within = new Set(followed),
    soft = ink("soft"),
    strong = ink("mark"),
    every = Math.ceil(13 / g.pitch);
  for (let row = 0; row < ROWS; row++) {
    const values = VALUES[row],
      top = rowTop(row) || 1;
    values.forEach((value, i) => {
      if (Number.isFinite(value))
        pen.rect(g.start(i), g.y(row), g.column - (g.column > 8 ? 2 : 1), g.cell, colour("signed", value / top));
    });
    const cut = row < BASE ? row : row - BASE;
    if (cut % every === 0 || (row === ROWS - 1 && every < 2))
      pen.text(g.left - 6, g.y(row) + g.cell / 2, rowName(row), { size: 10, anchor: "end", fill: soft });
  }
  const drawn = edgesShown(state.edges)
    .filter((e) => !within.has(e))
    .reverse();
  const path = (e, stroke, thick, alpha) => {
    const from = [g.x(E.key[e]), g.y(E.row[e])],
      to = [g.x(E.query[e]), g.y(E.row[e] + 1) + g.cell];
    if (g.bent) pen.curve(...from, ...to, stroke, thick, alpha);
    else pen.line([from, to], stroke, thick, alpha);
    pen.circle(...to, thick / 2 + (g.bent ? 1.5 : 1), stroke, alpha);
  };
  for (const e of drawn) path(e, edgeColour(e), edgeWidth(e), followed.length ? 0.22 : 0.85);
  followed.forEach((e, step) => {
    const next = followed[step + 1]; // from the edge's source token down to where the next one arrived
    const down = next !== undefined ? E.row[next] + 1 : E.key[e] < N ? BASE : 0;
    if (down < E.row[e])
      pen.line(
        [
          [g.x(E.key[e]), g.y(E.row[e]) + g.cell],
          [g.x(E.key[e]), g.y(down)],
        ],
        strong,
        1.5,
        next === undefined ? 0.35 : 0.8,
      );
    path(e, ink("page"), edgeWidth(e) + 4, 1);
    path(e, edgeColour(e), edgeWidth(e) + 1.5, 1);
    pen.circle(g.x(E.key[e]), g.y(E.row[e]), 3, strong);
    pen.circle(g.x(E.query[e]), g.y(E.row[e] + 1) + g.cell, 3, strong);
  });
  if (hover && hover.edge !== undefined) path(hover.edge, strong, edgeWidth(hover.edge) + 1.5, 1);
  if (hover && hover.row !== undefined && !hover.grid)
    pen.frame(g.start(hover.i) - 1, g.y(hover.row) - 1, g.column, g.cell + 2, strong, 1.5);
  if (state.pin >= 0 && state.pin < COLUMNS) {
    const bottom = g.y(state.pin < N ? BASE : 0) + g.cell;
    pen.frame(g.start(state.pin) - 1.5, g.top - 2, g.column + 1, bottom - g.top + 4, strong, 1.5);
  }
  if (M) {
    const told = "the decoder begins above";
    if (textWidth(told, 10) < g.start(N) - g.left - 16)
      pen.text(g.left, g.y(BASE - 1) + g.cell / 2, told, { size: 10, fill: soft });
    pen.line(
      [
        [g.start(N) - 8, g.top],
        [g.start(N) - 8, g.bottom],
      ],
      soft,
      1,
      0.5,
    );
  }
  g.named.forEach((text, i) => {
    const on = state.pin === i || (hover && hover.i === i),
      hit = hits.has(i);
    const crowded = [state.pin, hover ? hover.i : -1].some(
      (at) => at >= 0 && at !== undefined && Math.abs(at - i) < g.every,
    );
    if (!on && !hit && (i % g.every || (g.every > 1 && crowded))) return;
    pen.text(g.x(i), g.bottom + 6 + textWidth(shortened(text, g.size, 80), g.size), shortened(text, g.size, 80), {
      size: g.size,
      turned: true,
      anchor: "start",
      fill: on ? strong : hit ? ink("ink") : soft,
      weight: on || hit ? 650 : 400,
    });
  });
}

// Heads beside the graph, at the height where they work: between the cut before and the cut after their layer. Their
// columns: the heads of self-attention (of both stacks), those of cross-attention, the feed-forward.
const BLOCKS = M ? ["self", "cross"] : ["self"],
  FF = BLOCKS.length * HEADS;
const gridRoom = () => clamp((FF + 2) * 18 + 20, 150, 260);
// The rows, from below: a stack's layers.
const GRID = [
  ...(M ? KINDS.E.numbers.map((layer) => ({ kind: "E", layer, row: layer })) : []),
  ...D.layers.map((layer) => ({ kind: "L", layer, row: BASE + layer })),
];
// What a cell of the grid is: a head, the feed-forward, or nothing.
function gridCell(at, column) {
  const { kind, layer } = GRID[at];
  if (column === FF) return kind === "L" ? { kind, layer, ff: true, value: FFN[rowOf.get(layer)], top: TOP_FFN } : null;
  const of = column < HEADS ? kind : "X",
    head = column % HEADS;
  if ((kind === "E" && of === "X") || head >= KINDS[of].heads.shape[1]) return null;
  return { kind: of, layer, head, value: headValue(of, layer, head), top: TOP_HEAD };
}
function gridLayout(width, g) {
  const left = g ? 4 : 34,
    gap = 8,
    w = clamp((width - left - gap * BLOCKS.length - 2) / (FF + 2), 5, 30),
    pitch = g ? g.pitch : clamp(Math.floor(420 / GRID.length), 13, 34);
  const h = Math.max(5, Math.min(pitch - 2, 26));
  return {
    left,
    w,
    h,
    gap,
    pitch,
    width: Math.ceil(left + (FF + 2) * w + gap * BLOCKS.length + 2),
    bottom: g ? g.bottom : 6 + GRID.length * pitch,
    height: (g ? g.bottom : 6 + GRID.length * pitch) + (M ? 30 : 18),
    x: (column) => left + column * w + gap * Math.floor(column / HEADS),
    wide: (column) => (column === FF ? 2 * w : w),
    every: Math.ceil((HEADS > 10 ? 21 : 15) / w),
    y: (at) => (g ? g.y(GRID[at].row) - g.pitch + g.cell / 2 + (g.pitch - h) / 2 : 6 + (GRID.length - 1 - at) * pitch),
  };
}
function drawGrid(pen, grid) {
  const soft = ink("soft"),
    every = Math.ceil(13 / grid.pitch);
  GRID.forEach(({ kind, layer }, at) => {
    for (let column = 0; column <= FF; column++) {
      const cell = gridCell(at, column);
      if (!cell) continue;
      const w = grid.wide(column) - (grid.w > 8 ? 2 : 1);
      pen.rect(grid.x(column), grid.y(at), w, grid.h, colour("signed", cell.value / (cell.top || 1)));
      const chosen = !cell.ff && headName(cell.kind, cell.layer, cell.head) === state.head;
      if (chosen || (hover && hover.grid && hover.row === at && hover.column === column))
        pen.frame(grid.x(column) - 1, grid.y(at) - 1, w + 2, grid.h + 2, ink("mark"), 2);
    }
    if (grid.left > 20 && layer % every === 0)
      pen.text(grid.left - 6, grid.y(at) + grid.h / 2, kind + layer, { size: 10, anchor: "end", fill: soft });
  });
  const below = { size: 9, anchor: "middle", fill: soft };
  BLOCKS.forEach((name, block) => {
    for (let head = 0; head < HEADS; head += grid.every)
      pen.text(grid.x(block * HEADS + head) + grid.w / 2, grid.bottom + 10, "H" + head, below);
    if (M) pen.text(grid.x(block * HEADS) + (HEADS * grid.w) / 2, grid.bottom + 22, name, { ...below, size: 10 });
  });
  pen.text(grid.x(FF) + grid.w, grid.bottom + 10, "ff", { ...below, size: 10 });
}
