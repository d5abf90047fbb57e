// Two figures of an attribution: what sits at each position at every cut, with edges between; and heads by layer.

const TOP_STREAM = largest(numbers(D.stream)),
  TOP_HEAD = largest(numbers(D.heads)),
  TOP_EDGE = ORDER.length ? Math.abs(E.value[ORDER[0]]) : 0;
const FFN = D.layers.map((_, row) => sum([...slice(D.ffn, row)])),
  TOP_FFN = largest(FFN);
const cutTop = (cut) => (state.scale === "cut" ? largest(stream(cut)) : TOP_STREAM);

function graphLayout(width) {
  const left = 34,
    column = (width - left - 2) / N,
    size = clamp(Math.floor(column) - 2, LABEL, 12);
  const labels = Math.ceil(Math.min(84, Math.max(...LABELS.map((t) => textWidth(t, size))))) + 10;
  const pitch = clamp(Math.floor(450 / CUTS), 13, 62),
    cell = Math.max(5, Math.round(pitch * 0.44));
  const top = 6,
    bottom = top + (CUTS - 1) * pitch + cell;
  const w = Math.min(column, 112);
  return {
    left,
    column: w,
    size,
    pitch,
    cell,
    bent: pitch >= 26,
    top,
    bottom,
    width: left + w * N + 2,
    height: bottom + labels,
    every: Math.ceil(LABEL / w),
    x: (i) => left + (i + 0.5) * w,
    y: (cut) => top + (CUTS - 1 - cut) * pitch,
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
  for (let cut = 0; cut < CUTS; cut++) {
    const values = stream(cut),
      top = cutTop(cut) || 1;
    for (let i = 0; i < N; i++) {
      if (PADDING.has(i)) continue;
      pen.rect(
        g.left + i * g.column,
        g.y(cut),
        g.column - (g.column > 8 ? 2 : 1),
        g.cell,
        colour("signed", values[i] / top),
      );
    }
    if (cut % every === 0 || (cut === CUTS - 1 && every < 2))
      pen.text(g.left - 6, g.y(cut) + g.cell / 2, cut === 0 ? "in" : cut === CUTS - 1 ? "out" : String(cut), {
        size: 10,
        anchor: "end",
        fill: soft,
      });
  }
  const drawn = edgesShown(state.edges)
    .filter((e) => !within.has(e))
    .reverse();
  const path = (e, stroke, thick, alpha) => {
    const from = [g.x(E.key[e]), g.y(E.layer[e])],
      to = [g.x(E.query[e]), g.y(E.layer[e] + 1) + g.cell];
    if (g.bent) pen.curve(...from, ...to, stroke, thick, alpha);
    else pen.line([from, to], stroke, thick, alpha);
    pen.circle(...to, thick / 2 + (g.bent ? 1.5 : 1), stroke, alpha);
  };
  for (const e of drawn) path(e, edgeColour(e), edgeWidth(e), followed.length ? 0.22 : 0.85);
  followed.forEach((e, step) => {
    const next = followed[step + 1]; // from the edge's source token down to where the next one arrived
    const down = next === undefined ? 0 : E.layer[next] + 1;
    if (down < E.layer[e])
      pen.line(
        [
          [g.x(E.key[e]), g.y(E.layer[e]) + g.cell],
          [g.x(E.key[e]), g.y(down)],
        ],
        strong,
        1.5,
        next === undefined ? 0.35 : 0.8,
      );
    path(e, ink("page"), edgeWidth(e) + 4, 1);
    path(e, edgeColour(e), edgeWidth(e) + 1.5, 1);
    pen.circle(g.x(E.key[e]), g.y(E.layer[e]), 3, strong);
    pen.circle(g.x(E.query[e]), g.y(E.layer[e] + 1) + g.cell, 3, strong);
  });
  if (hover && hover.edge !== undefined) path(hover.edge, strong, edgeWidth(hover.edge) + 1.5, 1);
  if (hover && hover.cut !== undefined)
    pen.frame(g.left + hover.i * g.column - 1, g.y(hover.cut) - 1, g.column, g.cell + 2, strong, 1.5);
  if (state.pin >= 0)
    pen.frame(g.left + state.pin * g.column - 1.5, g.top - 2, g.column + 1, g.bottom - g.top + 4, strong, 1.5);
  LABELS.forEach((text, i) => {
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

// Heads beside the graph, at the height where they work: between the cut before and the cut after their layer.
function gridLayout(width, g) {
  const left = g ? 4 : 34,
    gap = 8,
    w = clamp((width - left - gap - 2) / (HEADS + 2), 5, 30),
    pitch = g ? g.pitch : clamp(Math.floor(420 / D.layers.length), 13, 34);
  const h = Math.max(5, Math.min(pitch - 2, 26));
  return {
    left,
    w,
    h,
    gap,
    pitch,
    width: Math.ceil(left + (HEADS + 2) * w + gap + 2),
    bottom: g ? g.bottom : 6 + D.layers.length * pitch,
    height: (g ? g.bottom : 6 + D.layers.length * pitch) + 18,
    x: (head) => left + head * w + (head === HEADS ? gap : 0),
    wide: (head) => (head === HEADS ? 2 * w : w),
    every: Math.ceil(15 / w),
    y: (row) =>
      g ? g.y(D.layers[row]) - g.pitch + g.cell / 2 + (g.pitch - h) / 2 : 6 + (D.layers.length - 1 - row) * pitch,
  };
}
function drawGrid(pen, grid) {
  const chosen = headOf(),
    soft = ink("soft"),
    every = Math.ceil(13 / grid.pitch);
  D.layers.forEach((layer, row) => {
    for (let head = 0; head <= HEADS; head++) {
      const share = head < HEADS ? slice(D.heads, row)[head] / (TOP_HEAD || 1) : FFN[row] / (TOP_FFN || 1);
      const w = grid.wide(head) - (grid.w > 8 ? 2 : 1);
      pen.rect(grid.x(head), grid.y(row), w, grid.h, colour("signed", share));
      if (
        (chosen && chosen.layer === layer && chosen.head === head) ||
        (hover && hover.grid && hover.row === row && hover.head === head)
      )
        pen.frame(grid.x(head) - 1, grid.y(row) - 1, w + 2, grid.h + 2, ink("mark"), 2);
    }
    if (grid.left > 20 && row % every === 0)
      pen.text(grid.left - 6, grid.y(row) + grid.h / 2, "L" + layer, { size: 10, anchor: "end", fill: soft });
  });
  for (let head = 0; head < HEADS; head += grid.every)
    pen.text(grid.x(head) + grid.w / 2, grid.bottom + 10, "H" + head, { size: 9, anchor: "middle", fill: soft });
  pen.text(grid.x(HEADS) + grid.w, grid.bottom + 10, "ff", { size: 10, anchor: "middle", fill: soft });
}
