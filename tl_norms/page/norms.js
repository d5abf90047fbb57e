// The page of norms: an overview of all layers, and of one layer weights beside norms, heads, or the feed-forward.

const PAGE = {
  title: "norms and attention weights",
  subtitle: `${N} tokens${D.source.length ? ` + ${D.source.length} of the source sentence` : ""} \u00b7 ${D.layers.length === 1 ? "1 layer" : D.layers.length + " layers"}`,
  defaults: {
    view: "weights",
    layer: D.open.layer,
    scope: D.open.scope,
    head: 0,
    pin: -1,
    dir: "into",
    diagonal: "auto",
    scale: "layer",
  },
  valid(wanted) {
    const ok = { ...wanted },
      base = PAGE.defaults;
    if (
      !["weights", "heads", "ff"].includes(ok.view) ||
      (ok.view === "heads" && !D.heads) ||
      (ok.view === "ff" && !AFTER)
    )
      ok.view = base.view;
    if (!D.layers.includes(ok.layer)) ok.layer = base.layer;
    if (!D.scopes.includes(ok.scope)) ok.scope = base.scope;
    if (!D.heads || !(Number.isInteger(ok.head) && ok.head >= 0 && ok.head < D.heads.n)) ok.head = 0;
    if (!Number.isInteger(ok.pin) || ok.pin < -1 || ok.pin >= KEYS.length) ok.pin = -1;
    if (!["into", "from"].includes(ok.dir)) ok.dir = "into";
    if (ok.pin >= N) ok.dir = "from"; // nothing went into a source sentence's token here
    if (!["auto", "on", "off"].includes(ok.diagonal)) ok.diagonal = "auto";
    if (!["layer", "all", "row"].includes(ok.scale)) ok.scale = "layer";
    return ok;
  },
  start() {
    segmented("view", [
      { value: "weights", text: D.attention ? "Weights and norms" : "Norms" },
      {
        value: "heads",
        text: "Heads",
        off: !D.heads,
        title: D.heads ? "" : "The weights of single heads are not in this page: not kept, or too many for one page.",
      },
      {
        value: "ff",
        text: "Feed-forward",
        off: !AFTER,
        title: AFTER
          ? ""
          : FIRST_FF
            ? `Needs the scopes ${D.chain[D.chain.indexOf(FIRST_FF) - 1]} and ${FIRST_FF}; this result has ${D.scopes.join(", ")}.`
            : "This model's chain has no feed-forward.",
      },
    ]);
    stepper("Layer", "layer", D.layers);
    chooser(
      "Scope",
      "scope",
      D.scopes.map((scope) => ({ value: scope, text: scope })),
      () => state.view === "weights",
    );
    chooser("Scale", "scale", [
      { value: "layer", text: "this layer" },
      { value: "all", text: "all layers" },
      { value: "row", text: "each row" },
    ]);
    chooser("Diagonal", "diagonal", [
      { value: "auto", text: "automatic" },
      { value: "on", text: "shown" },
      { value: "off", text: "left out" },
    ]);
    segmented(
      "dir",
      [
        { value: "into", text: "What went into it" },
        { value: "from", text: "Where it went" },
      ],
      () => state.pin >= 0 && state.pin < N,
      $("below"),
    );
    buildStage();
  },
  render: renderStage,
  chips() {
    const panel = colouring(),
      row = layerRow(),
      m = mapOf(panel.family, row),
      kind = kindOf(panel.family),
      own = diagonalShown();
    if (state.pin < 0) {
      const ratios = leader().ratios || slice(D.ratios[state.scope], row),
        values = KEYS.map((_, i) => (i < N ? ratios[i] : NaN));
      return {
        values,
        top: largest(values) || 1,
        kind: "norm",
        numbers: percent,
        range: percent,
        legend:
          "Coloured by mixing ratio: how much of a position comes from other positions. Click a token to see what went into it.",
      };
    }
    const pick = (i) =>
      i === state.pin && !own
        ? NaN
        : state.dir === "into"
          ? i < m.columns
            ? m.get(state.pin, i)
            : NaN
          : i < N && state.pin < m.columns
            ? m.get(i, state.pin)
            : NaN;
    const values = KEYS.map((_, i) => pick(i)),
      name = quoted(state.pin);
    return {
      values,
      top: largest(values) || 1,
      kind,
      range: rangeOf(panel),
      numbers:
        panel.family === "change"
          ? points
          : kind === "signed"
            ? signedLike(largest(values))
            : (x) => signedLike(largest(values))(x).replace("+", ""),
      legend: `Coloured by ${panel.title.toLowerCase()} (${panel.what}): ${state.dir === "into" ? "what each token put into " + name : "what " + name + " put into each position"}.`,
    };
  },
  caption() {
    const lead = colouring(),
      row = layerRow(),
      m = mapOf(lead.family, row),
      best = { x: 0 };
    for (let q = 0; q < N; q++)
      for (let k = 0; k < m.columns; k++)
        if (q !== k && Math.abs(m.get(q, k)) > Math.abs(best.x)) Object.assign(best, { x: m.get(q, k), q, k });
    const strongest =
      best.q === undefined
        ? ""
        : ` Largest between two tokens: ${quoted(best.k)} \u2192 ${quoted(best.q)} (${lead.family === "change" ? points(best.x) : say(best.x, 3)}).`;
    const layer = { strong: `Layer ${state.layer}` };
    if (state.view === "heads")
      return [
        layer,
        `, head ${state.head}: its attention weight beside the length of the weighted value vector that it moved from each source token (column) to each position (row).${strongest}`,
      ];
    if (state.view === "ff")
      return [
        layer,
        `: lengths of what each source token (column) put into each position (row), before and after the feed-forward, and how that changed its share of the row.${strongest.replace("Largest", "Largest change")}`,
      ];
    return [
      layer,
      `, ${spelled(state.scope)}: ${D.attention ? "attention weight beside " : ""}the ${D.measure === "l2" ? "length of the vector" : "contribution (" + D.measure + ")"} that each source token (column) put into each position (row).${strongest}`,
    ];
  },
  tip(i) {
    const row = layerRow(),
      rows = [];
    if (i < N) {
      rows.push([
        "mixing ratio, norms",
        percent((leader().ratios || slice(D.ratios[state.scope], row))[i]),
        leader().ratios ? leader().what : state.scope,
      ]);
      if (D.weight_ratios) rows.push(["mixing ratio, weights", percent(slice(D.weight_ratios, row)[i]), ""]);
    }
    if (state.pin >= 0) {
      const [q, k] = state.dir === "into" ? [state.pin, i] : [i, state.pin];
      if (q < N && k < mapOf(leader().family, row).columns && pairExists(q, k))
        return { ...pairTip(q, k), rows: [...pairTip(q, k).rows, ...rows] };
    }
    return { head: `${KEYS[i]} (position ${place(i)})`, rows };
  },
  figure() {
    const gap = 24,
      each = shown.length > 2 ? 400 : 520;
    const parts = shown.map((panel) => ({
      ...panel,
      layout: mapLayout(each, panel.m, {
        rows: LABELS,
        columns: KEYS.slice(0, panel.m.columns),
        bars: Boolean(panel.ratios),
        most: 42,
      }),
    }));
    alike(parts, each);
    const height = 26 + Math.max(...parts.map((part) => part.layout.height)) + 26;
    return {
      width: sum(parts.map((part) => part.layout.width)) + gap * (parts.length - 1),
      height,
      draw(pen) {
        let x = 0;
        for (const part of parts) {
          pen.text(x, 8, part.title, { size: 13, weight: 650, fill: ink("ink") });
          pen.text(x + textWidth(part.title, 13, 650) + 6, 8, part.what, { size: 12, fill: ink("soft") });
          drawMap(shifted(pen, x, 26), part.m, part.layout, look(part));
          drawColourBar(
            pen,
            part.kind,
            state.scale === "row" ? 1 : part.top,
            x + part.layout.left,
            26 + part.layout.height + 12,
            scaleNote(part),
            state.scale === "row" ? plainly : rangeOf(part),
          );
          x += part.layout.width + gap;
        }
      },
    };
  },
  csv() {
    const rows = [["layer", "query", "query_token", "key", "key_token", ...shown.map((panel) => panel.column)]];
    const columns = Math.max(...shown.map((panel) => panel.m.columns));
    for (let q = 0; q < N; q++)
      for (let k = 0; k < columns; k++)
        if (pairExists(q, k))
          rows.push([
            state.layer,
            D.positions[q],
            D.tokens[q],
            place(k),
            [...D.tokens, ...D.source][k],
            ...shown.map((panel) => (k < panel.m.columns ? panel.m.get(q, k) : "")),
          ]);
    return rows;
  },
  file: () =>
    `norms-layer${state.layer}-${state.view === "heads" ? "head" + state.head : state.view === "ff" ? "feed-forward" : state.scope}`,
  foot() {
    const scopes = state.view === "ff" ? [BEFORE, AFTER] : [state.scope || D.open.scope];
    const errors = Object.values(D.errors)
      .flat()
      .filter((x) => x !== null);
    const checked = errors.length
      ? `Checked: at every layer and scope the vectors add up to the model's own activation, to ${say(Math.max(...errors), 2)} (relative, worst position)`
      : `The vectors of ${scopes.join(", ")} could not be compared with an activation of the model`;
    return (
      checked +
      (D.processing.length ? ` \u00b7 weights processed: ${D.processing.join(", ")}` : "") +
      (D.sketch ? ` \u00b7 estimated with ${D.sketch} random directions` : "")
    );
  },
  keys: {
    "[": () => set({ layer: D.layers[Math.max(layerRow() - 1, 0)] }),
    "]": () => set({ layer: D.layers[Math.min(layerRow() + 1, D.layers.length - 1)] }),
    1: () => set({ view: "weights" }),
    2: () => set({ view: "heads" }),
    3: () => set({ view: "ff" }),
    d: () => set({ diagonal: diagonalShown() ? "off" : "on" }),
    f: () => set({ dir: state.dir === "into" ? "from" : "into" }),
  },
  help: {
    text: [
      "Each cell is what the source token of its column (key) put into the position of its row (query). Attention weights (purple) say where a head looked; norms (blue) are the length of the vector that was really moved, after the steps that the scope names: attn (attention), res (residual connection), ln (layer norm), ff (feed-forward), cross (cross-attention). Lengths are in the units of the residual stream; rows do not sum to one.",
      "The mixing ratio of a position is the share of what comes from other positions: the length of the sum of their vectors, divided by that length plus the length of the position's own vector.",
      "The diagonal is what a position keeps of itself. It is often much the largest; \u201cautomatic\u201d leaves it out where it would drown the rest. Shares and ranks in the tooltip are among what is shown.",
      "Click a token, a cell or a row to pin a token and colour the text by what went into it; click a column's token to see where it went. The address of the page keeps what is shown.",
    ],
    keys: [
      ["[ and ]", "previous and next layer"],
      ["1 2 3", "weights and norms, heads, feed-forward"],
      ["arrows", "move in a map or along the text"],
      ["Enter", "pin"],
      ["f", "what went into the pinned token, or where it went"],
      ["d", "diagonal shown or left out"],
    ],
  },
};

startPage();
