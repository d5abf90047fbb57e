// A query × key map with tokens along both sides: where everything stands, how it is drawn, what is under a point.

const LEAST = 3,
  LABEL = 9; // pixels of the smallest cell and of the smallest letter

function mapLayout(width, matrix, { rows, columns, bars = false, most = 38 }) {
  const narrow = width < 430;
  const left =
    Math.ceil(Math.min(narrow || rows.length > 24 ? 66 : 96, Math.max(...rows.map((t) => textWidth(t, 12)), 24))) + 10;
  const right = bars ? (narrow ? 42 : 44) : 2;
  const fit = (width - left - right) / matrix.columns;
  const cell = clamp(fit >= 7 ? Math.floor(fit) : Math.floor(4 * fit) / 4, Math.min(LEAST, most), most);
  const size = clamp(Math.floor(cell) - 2, LABEL, 12);
  const top = Math.ceil(Math.min(84, Math.max(...columns.map((t) => textWidth(t, size))))) + 8;
  return {
    left,
    top,
    cell,
    size,
    bars,
    rows,
    columns,
    right,
    every: Math.ceil(LABEL / cell),
    width: left + matrix.columns * cell + right,
    height: top + matrix.rows * cell + 2,
  };
}

// look: fill(q, k) -> colour or null; ratios; pin {query, key}; hover {q, k}; hits: Set of positions; boundary
function drawMap(pen, matrix, layout, look) {
  drawCells(pen, matrix, layout, look);
  drawMarks(pen, matrix, layout, look);
}
const gapOf = (layout) => (layout.cell >= 7 ? 1 : 0);
function drawCells(pen, matrix, layout, look) {
  const { left, top, cell } = layout,
    side = cell - gapOf(layout);
  for (let q = 0; q < matrix.rows; q++)
    for (let k = 0; k < matrix.columns; k++) {
      const fill = look.fill(q, k);
      if (fill) pen.rect(left + k * cell, top + q * cell, side, side, fill);
    }
}
// All but the cells: what changes as the pointer moves.
function drawMarks(pen, matrix, layout, look) {
  const { left, top, cell, size, every } = layout,
    gap = gapOf(layout),
    soft = ink("soft"),
    strong = ink("ink"),
    mark = ink("mark");
  const chosen = (side, i) => (look.hover && look.hover[side] === i) || (look.pin && look.pin[side] === i);
  const label = (side, text, i, x, y, turned, room) => {
    const on = chosen(side, i),
      hit = look.hits && look.hits.has(i);
    if (!on && i % every && !hit) return;
    if (!on && every > 1 && near(look, side, i, every)) return; // its neighbour is named, and would be written over
    const weight = on || hit ? 650 : 400;
    pen.text(x, y, shortened(text, size, room, weight), {
      size,
      turned,
      weight,
      anchor: turned ? "start" : "end",
      fill: on ? mark : hit ? strong : soft,
    });
  };
  layout.rows.forEach((text, q) => label("q", text, q, left - 6, top + (q + 0.5) * cell - gap / 2, false, left - 8));
  layout.columns.forEach((text, k) => label("k", text, k, left + (k + 0.5) * cell - gap / 2, top - 5, true, top - 7));
  if (look.boundary) pen.rect(left + look.boundary * cell - (gap + 1) / 2, top - 2, 1.5, matrix.rows * cell + 2, mark);
  if (layout.bars && look.ratios) drawBars(pen, matrix, layout, look, gap);
  const box = (q, k, h, w) =>
    pen.frame(left + k * cell - 0.5, top + q * cell - 0.5, w * cell - gap + 1, h * cell - gap + 1, mark, 1.5);
  if (look.pin && look.pin.q >= 0) box(look.pin.q, 0, 1, rowEnd(matrix, look.pin.q));
  if (look.pin && look.pin.k >= 0)
    box(columnStart(matrix, look.pin.k), look.pin.k, matrix.rows - columnStart(matrix, look.pin.k), 1);
  if (look.hover) box(look.hover.q, look.hover.k, 1, 1);
}
const near = (look, side, i, every) =>
  [look.hover, look.pin].some((at) => at && at[side] >= 0 && Math.abs(at[side] - i) < every);
const rowEnd = (m, q) => (D.causal && m.rows === N && m.columns === N ? q + 1 : m.columns);
const columnStart = (m, k) => (D.causal && m.rows === N && k < N ? k : 0);

// Mixing ratios at the right of the rows.
function drawBars(pen, matrix, layout, look, gap) {
  const { left, top, cell, right, every } = layout,
    x = left + matrix.columns * cell + 6,
    full = right - 10;
  const thick = Math.max(2, Math.min(cell - gap - 1, 9));
  for (let q = 0; q < matrix.rows; q++) {
    const y = top + (q + 0.5) * cell - gap / 2 - thick / 2;
    pen.rect(x, y, full, thick, ink("void"));
    pen.rect(
      x,
      y,
      full * clamp(look.ratios[q] || 0, 0, 1),
      thick,
      colour(look.kind === "weight" ? "weight" : "norm", 0.62),
    );
  }
  pen.text(x, top - 16, "mixing", { size: LABEL, fill: ink("soft") });
  pen.text(x, top - 6, "ratio", { size: LABEL, fill: ink("soft") });
}

// What is at a point of the map: a cell {q, k}, a label {q} or {k}, or nothing.
function under(layout, matrix, x, y) {
  const k = Math.floor((x - layout.left) / layout.cell),
    q = Math.floor((y - layout.top) / layout.cell);
  const inRows = q >= 0 && q < matrix.rows,
    inColumns = k >= 0 && k < matrix.columns;
  if (inRows && inColumns) return { q, k };
  if (inRows && x < layout.left) return { q };
  if (inColumns && y < layout.top) return { k };
  return null;
}

// A map as a thumbnail, one point per pair.
function drawThumb(canvas, matrix, fill, width, height = (width * matrix.rows) / matrix.columns) {
  const pen = canvas.getContext("2d"),
    ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const image = new ImageData(matrix.columns, matrix.rows),
    none = ink("void-rgb").split(",").map(Number);
  for (let q = 0; q < matrix.rows; q++)
    for (let k = 0; k < matrix.columns; k++) {
      const c = fill(q, k),
        at = 4 * (q * matrix.columns + k);
      if (c === undefined) continue;
      image.data.set([...(c || none), 255], at);
    }
  const sheet = document.createElement("canvas");
  sheet.width = matrix.columns;
  sheet.height = matrix.rows;
  sheet.getContext("2d").putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = matrix.columns > canvas.width;
  pen.drawImage(sheet, 0, 0, canvas.width, canvas.height);
}

// A colour bar: its range in words on both sides.
const plainly = (x) => say(x, 3);
function colourBar(kind, top, note = "", format = plainly) {
  const bar = make("div", "bar");
  bar.append(make("span", "", kind === "signed" ? "\u2212" + format(top) : "0"));
  const ramp = make("i");
  ramp.style.background = gradient(kind);
  bar.append(ramp, make("span", "", format(top)), make("span", "note", note));
  return bar;
}
function drawColourBar(pen, kind, top, x, y, note, format = plainly) {
  const start = kind === "signed" ? "\u2212" + format(top) : "0",
    soft = { size: 10, fill: ink("soft") };
  pen.text(x, y, start, soft);
  x += textWidth(start, 10) + 6;
  const steps = 48,
    from = kind === "signed" ? -1 : 0;
  for (let i = 0; i < steps; i++)
    pen.rect(x + i * 2, y - 4, 2.2, 8, colour(kind, from + ((1 - from) * i) / (steps - 1)));
  pen.text(x + 2 * steps + 6, y, format(top) + (note ? "   " + note : ""), soft);
}
