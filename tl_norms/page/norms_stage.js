// What a page of norms draws: the overview of all layers and heads, the maps, the mixing ratios by layer.

let hover = null,
  shown = [];

function buildStage() {
  const side = make("aside");
  side.append(
    make("h2", "first", "All layers"),
    make("p", "soft first", ""),
    make("div", "thumbs"),
    make("h2", "", "Mixing ratio by layer"),
    make("canvas", "curve"),
    make("p", "soft key"),
  );
  const work = make("div", "work");
  work.append(make("div", "heads"), make("div", "panels"));
  $("stage").append(side, work);
  D.layers.forEach((layer) => {
    const button = thumbButton("L" + layer, () => set({ layer }));
    side.querySelector(".thumbs").append(button);
  });
  if (D.heads)
    for (let head = 0; head < D.heads.n; head++)
      work.querySelector(".heads").append(thumbButton("H" + head, () => set({ head })));
  const curve = side.querySelector(".curve");
  curve.onclick = (event) => {
    const part = (event.clientX - curve.getBoundingClientRect().left - 30) / (curve.clientWidth - 38);
    set({ layer: D.layers[clamp(Math.round(part * (D.layers.length - 1)), 0, D.layers.length - 1)] });
  };
}
function thumbButton(name, act) {
  const button = make("button", "thumb");
  button.append(make("canvas"), make("span", "", name));
  button.onclick = act;
  button.onkeydown = (event) => {
    const next = { ArrowLeft: "previousElementSibling", ArrowRight: "nextElementSibling" }[event.key];
    if (!next) return;
    event.preventDefault();
    if (button[next]) {
      button[next].focus();
      button[next].click();
    }
  };
  return button;
}

function renderStage() {
  const side = document.querySelector("aside"),
    lead = leader();
  side.querySelector("p").textContent =
    `${lead.title}, ${lead.what.replace(/^L\d+/, "")}${state.scale === "all" ? "; one scale" : "; each on its own scale"}`;
  const many = D.layers.length,
    size = many > 20 ? 30 : many > 9 ? 41 : innerWidth < 760 ? 46 : 60;
  [...side.querySelector(".thumbs").children].forEach((button, row) => {
    drawThumb(button.firstChild, mapOf(lead.family, row), fillOf(lead, row), size, size);
    mark(button, D.layers[row] === state.layer, `layer ${D.layers[row]}`);
  });
  const heads = document.querySelector(".heads");
  heads.hidden = state.view !== "heads";
  if (!heads.hidden)
    [...heads.children].forEach((button, head) => {
      const pair = [`head weight:${head}`, `head:${head}`].map((family) => fillOf({ family }));
      const wide = matrixOf(N, 2 * N + 1, () => 0);
      drawThumb(
        button.firstChild,
        wide,
        (q, k) => (k === N ? undefined : k < N ? pair[0](q, k) : pair[1](q, k - N - 1)),
        92,
        44,
      );
      mark(button, head === state.head, `head ${head}`);
    });
  drawCurve();
  renderPanels();
}
function mark(button, chosen, name) {
  button.setAttribute("aria-pressed", String(chosen));
  button.setAttribute("aria-label", name);
  button.tabIndex = chosen ? 0 : -1;
}

function renderPanels() {
  const box = document.querySelector(".panels"),
    wanted = panels();
  const columns = columnsOf(wanted, box.clientWidth);
  box.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  while (box.children.length > wanted.length) box.lastChild.remove();
  while (box.children.length < wanted.length) box.append(newPanel());
  const width = Math.floor((box.clientWidth - 18 * (columns - 1)) / columns);
  shown = wanted.map((panel, i) => {
    const m = mapOf(panel.family, layerRow());
    const layout = mapLayout(width, m, {
      rows: LABELS,
      columns: KEYS.slice(0, m.columns),
      bars: Boolean(panel.ratios),
      most: wanted.length > 2 ? 34 : 42,
    });
    return {
      ...panel,
      m,
      layout,
      fill: fillOf(panel),
      kind: kindOf(panel.family),
      top: panelTop(panel),
      element: box.children[i],
    };
  });
  alike(shown, width);
  shown.forEach((panel) => {
    const [title, scroll, foot] = panel.element.children;
    title.replaceChildren(make("b", "", panel.title), ` ${panel.what}`);
    scroll.firstChild.setAttribute(
      "aria-label",
      `${panel.title}, ${panel.what}, layer ${state.layer}: ${N} positions by ${panel.m.columns} source tokens, ` +
        `up to ${say(panel.top, 3)}. Move with the arrow keys, pin with Enter.`,
    );
    foot.replaceChildren(
      colourBar(
        panel.kind,
        state.scale === "row" ? 1 : panel.top,
        scaleNote(panel),
        state.scale === "row" ? plainly : rangeOf(panel),
      ),
    );
  });
  paintPanels();
}
// Maps of the same columns get cells of the same size, with a bar at their right or without.
function alike(panels, width) {
  for (const panel of panels) {
    const most = Math.min(...panels.filter(({ m }) => m.columns === panel.m.columns).map(({ layout }) => layout.cell));
    if (panel.layout.cell > most) panel.layout = mapLayout(width, panel.m, { ...panel.layout, most });
  }
}
const rangeOf = (panel) => (panel.family === "change" ? percent : plainly);
function scaleNote(panel) {
  const own = diagonalShown() ? "" : "diagonal left out";
  return [state.scale === "row" ? "share of the row's largest" : "", own].filter(Boolean).join("; ");
}
function look(panel) {
  return {
    fill: (q, k) => {
      const c = panel.fill(q, k);
      return c === undefined ? null : c ? css(c) : ink("void");
    },
    ratios: panel.ratios,
    kind: panel.kind,
    hits,
    boundary: panel.m.columns > N ? N : 0,
    hover: hover && hover.k < panel.m.columns ? hover : null,
    pin:
      state.pin < 0
        ? null
        : state.dir === "into"
          ? { q: state.pin, k: -1 }
          : { q: -1, k: state.pin < panel.m.columns ? state.pin : -1 },
  };
}
// As many maps side by side as leave room for their cells.
function columnsOf(wanted, width) {
  const widest = Math.max(...wanted.map((panel) => mapOf(panel.family, layerRow()).columns));
  let columns = width > 560 ? wanted.length : 1;
  while (columns > 1 && ((width + 18) / columns - 138) / widest < 5) columns--;
  return columns;
}
function paintPanels() {
  for (const panel of shown) {
    const { m, layout } = panel,
      seen = look(panel);
    if (!panel.sheet) {
      panel.sheet = make("canvas"); // the cells, which stay as they are while the pointer moves
      drawCells(canvasPen(panel.sheet, layout.width, layout.height), m, layout, seen);
    }
    const pen = canvasPen(panel.element.children[1].firstChild, layout.width, layout.height);
    pen.image(panel.sheet);
    drawMarks(pen, m, layout, seen);
  }
}
function newPanel() {
  const panel = make("figure"),
    canvas = make("canvas", "map"),
    scroll = make("div", "scroll");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  scroll.append(canvas);
  panel.append(make("figcaption"), scroll, make("div", "foot"));
  const mine = () => shown.find((one) => one.element === panel);
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return under(mine().layout, mine().m, event.clientX - box.left, event.clientY - box.top);
  };
  const follow = (event) => {
    const found = at(event);
    if (found && found.q !== undefined && found.k !== undefined && pairExists(found.q, found.k)) point(mine(), found);
    else leave();
    canvas.style.cursor = found ? "pointer" : "";
  };
  canvas.onpointermove = follow;
  canvas.onpointerleave = leave;
  canvas.onblur = leave;
  canvas.onclick = (event) => {
    const found = at(event);
    if (!found) return;
    pinAt(found.q === undefined ? { pin: found.k, dir: "from" } : { pin: found.q, dir: "into" });
    follow(event);
  };
  canvas.onkeydown = (event) => {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (by) {
      event.preventDefault();
      let { q, k } = hover ? { q: hover.q + by[0], k: hover.k + by[1] } : { q: Math.max(state.pin, 0) % N, k: 0 };
      q = clamp(q, 0, N - 1);
      k = clamp(k, 0, mine().m.columns - 1);
      if (pairExists(q, k)) point(mine(), { q, k });
    }
    if (event.key === "Enter" && hover) pinAt({ pin: hover.q, dir: "into" });
  };
  return panel;
}
const pinAt = (changes) => set(state.pin === changes.pin && state.dir === changes.dir ? { pin: -1 } : changes);
function point(panel, cell) {
  hover = cell;
  paintPanels();
  const box = panel.element.children[1].firstChild.getBoundingClientRect(),
    { left, top, cell: size } = panel.layout;
  const x = box.left + left + cell.k * size,
    y = box.top + top + cell.q * size;
  showTip(pairTip(cell.q, cell.k), { left: x, right: x + size, top: y, bottom: y + size });
}
function leave() {
  if (hover) {
    hover = null;
    paintPanels();
  }
  hideTip();
}
function pairTip(q, k) {
  const rows = panels().map((panel) => {
    const m = mapOf(panel.family, layerRow());
    if (k >= m.columns) return [panel.title.toLowerCase(), "\u2013", "no such source token"];
    const x = m.get(q, k);
    if (panel.family === "change") return ["change", points(x), "of the row\u2019s share"];
    if (!Number.isFinite(x)) return [panel.title.toLowerCase(), say(x), ""];
    if (!diagonalShown() && q === k) return [panel.title.toLowerCase(), say(x), "own vector, left out"];
    const row = Array.from({ length: m.columns }, (_, j) => (j === q && !diagonalShown() ? NaN : m.get(q, j)));
    const { rank, of, share } = standing(x, row);
    return [panel.title.toLowerCase(), say(x), `${percent(share)} of the row \u00b7 rank ${rank} of ${of}`];
  });
  return { head: `${KEYS[k]} (${place(k)}) \u2192 ${LABELS[q]} (${place(q)})`, rows };
}

// Mean mixing ratio by layer, by norms and by weights.
function drawCurve() {
  const canvas = document.querySelector(".curve"),
    width = canvas.parentElement.clientWidth || $("stage").clientWidth,
    height = 96;
  const means = (block) => D.layers.map((_, row) => mean(slice(block, row)));
  const lines =
    state.view === "ff"
      ? [
          ["before", "norm", 0.35, means(D.ratios[BEFORE])],
          ["after", "norm", 0.8, means(D.ratios[AFTER])],
        ]
      : [
          ...(D.weight_ratios ? [["weights", "weight", 0.6, means(D.weight_ratios)]] : []),
          [`norms (${state.scope})`, "norm", 0.6, means(D.ratios[state.scope])],
        ];
  const pen = canvasPen(canvas, width, height),
    left = 30,
    right = width - 8,
    top = 8,
    bottom = height - 16;
  const x = (row) => (D.layers.length > 1 ? left + ((right - left) * row) / (D.layers.length - 1) : (left + right) / 2);
  const y = (share) => bottom - (bottom - top) * share;
  for (const share of [0, 0.5, 1]) {
    pen.line(
      [
        [left, y(share)],
        [right, y(share)],
      ],
      ink("line"),
      1,
    );
    pen.text(left - 5, y(share), `${100 * share}%`, { size: 9, fill: ink("soft"), anchor: "end" });
  }
  pen.line(
    [
      [x(layerRow()), top],
      [x(layerRow()), bottom],
    ],
    ink("mark"),
    1.5,
    0.8,
  );
  pen.text(clamp(x(layerRow()), left + 8, right - 8), height - 6, "L" + state.layer, {
    size: 10,
    fill: ink("mark"),
    anchor: "middle",
    weight: 650,
  });
  for (const [, kind, share, values] of lines) {
    const points = values.map((value, row) => [x(row), y(value)]).filter((at) => at.every(Number.isFinite));
    pen.line(points, colour(kind, share), 2);
    if (points.length < 20) for (const [px, py] of points) pen.circle(px, py, 2.5, colour(kind, share));
  }
  const key = document.querySelector("aside .key");
  key.replaceChildren(
    ...lines.map(([name, kind, share]) => {
      const entry = make("span"),
        dot = make("i");
      dot.style.background = colour(kind, share);
      entry.append(dot, name);
      return entry;
    }),
  );
  canvas.setAttribute("role", "img");
  canvas.setAttribute(
    "aria-label",
    `Mean mixing ratio at layer ${state.layer}: ` +
      lines.map(([name, , , values]) => `${name} ${percent(values[layerRow()])}`).join(", "),
  );
}
