// The page of an attribution: signed tokens, what sits at which position after every layer, heads, edges between layers.

const PAGE = {
  title: `where ${D.target} comes from`,
  subtitle: `${N} tokens${D.source.length ? ` + ${D.source.length} of the source sentence` : ""} \u00b7 ${D.layers.length === 1 ? "1 layer" : D.layers.length + " layers"}`,
  defaults: { pin: -1, dir: "into", head: "", edges: Math.min(24, ORDER.length), trail: "", scale: "one" },
  valid(wanted) {
    const ok = { ...wanted },
      base = PAGE.defaults;
    if (!Number.isInteger(ok.pin) || ok.pin < -1 || ok.pin >= COLUMNS) ok.pin = -1;
    if (!["into", "from"].includes(ok.dir)) ok.dir = "into";
    if (!headNamed(ok.head)) ok.head = "";
    if (!Number.isInteger(ok.edges) || ok.edges < 0 || ok.edges > ORDER.length) ok.edges = base.edges;
    if (ok.trail && !ok.trail.split("_").every((id) => BY_ID.has(id))) ok.trail = "";
    if (!["one", "cut"].includes(ok.scale)) ok.scale = "one";
    return ok;
  },
  start() {
    const steps = [0, 6, 12, 24, 48, 96, 192, 384].filter((n) => n < ORDER.length || n === 0);
    if (!steps.includes(PAGE.defaults.edges)) steps.push(PAGE.defaults.edges);
    stepper(
      "Edges",
      "edges",
      steps.sort((a, b) => a - b),
      (n) => (n ? `${n} strongest` : "none"),
    );
    chooser("Scale", "scale", [
      { value: "one", text: "one for all layers" },
      { value: "cut", text: "each row its own" },
    ]);
    segmented(
      "dir",
      [
        { value: "into", text: "What reached it" },
        { value: "from", text: "Where it went" },
      ],
      () => state.pin >= 0,
      $("below"),
    );
    buildStage();
  },
  render: renderStage,
  chips() {
    if (state.pin < 0) {
      const values = inputs();
      return {
        values: values.map((x, i) => (PADDING.has(i) ? NaN : x)),
        top: largest(values) || 1,
        kind: "signed",
        numbers: signedLike(largest(values)),
        legend: `Blue speaks for ${D.target}, red against it. Click a token to see which edges reached it.`,
      };
    }
    const values = Array(KEYS.length).fill(NaN),
      [mine, other] = state.dir === "into" ? [E.query, E.key] : [E.key, E.query];
    for (const e of ORDER) if (mine[e] === state.pin && Number.isNaN(values[other[e]])) values[other[e]] = E.value[e]; // strongest first
    return {
      values,
      top: largest(values) || 1,
      kind: "signed",
      numbers: signedLike(largest(values)),
      legend:
        state.dir === "into"
          ? `Coloured by the strongest single edge from each token to ${quoted(state.pin)}, in any layer.`
          : `Coloured by the strongest single edge from ${quoted(state.pin)} to each position, in any layer.`,
    };
  },
  caption() {
    const values = [...stream(0)],
      all = inputs(),
      order = all
        .map((_, i) => i)
        .sort((a, b) => Math.abs(all[b]) - Math.abs(all[a]))
        .slice(0, 3);
    return [
      { strong: `${D.target} = ${say(D.value, 4)}` },
      `: the tokens contribute ${signed(sum(values))} together, ${D.source_total === null ? "" : `the source sentence ${signed(D.source_total)}, `}` +
        `biases and other constants ${signed(D.constants)}. Largest: ` +
        order.map((i) => `${quoted(i)} ${signed(all[i])}`).join(", ") +
        ".",
    ];
  },
  tip(i) {
    const values = inputs(),
      { rank, of, share } = standing(values[i], values);
    const rows = [
      ["contribution", signed(values[i], 4), ""],
      ["share of all contributions", percent(share), `rank ${rank} of ${of}`],
    ];
    const value = PAGE.chips().values[i];
    if (state.pin >= 0 && Number.isFinite(value))
      rows.push([
        "strongest edge",
        signed(value),
        state.dir === "into" ? `to ${KEYS[state.pin]}` : `from ${KEYS[state.pin]}`,
      ]);
    return { head: `${KEYS[i]} (position ${i < N ? i : place(i)})`, rows };
  },
  figure() {
    const g = graphLayout(760),
      h = gridLayout(gridRoom(), g),
      head = headOf(),
      m = head && headMap(head);
    const l = head && mapLayout(360, m, m.labels),
      x = g.width + 24,
      x2 = x + h.width + 24;
    return {
      width: head ? x2 + l.width : x + h.width,
      height: 26 + Math.max(g.height, h.height, head ? l.height : 0) + 24,
      draw(pen) {
        const title = (at, text) => pen.text(at, 8, text, { size: 13, weight: 650, fill: ink("ink") });
        title(0, "Layer by layer");
        title(x, "Heads");
        drawGraph(shifted(pen, 0, 26), g);
        drawGrid(shifted(pen, x, 26), h);
        drawColourBar(
          pen,
          "signed",
          state.scale === "cut" ? 1 : TOP_STREAM,
          g.left,
          26 + g.height + 12,
          state.scale === "cut" ? "share of the row's largest" : "contribution of a position",
        );
        drawColourBar(pen, "signed", TOP_HEAD, x, 26 + h.bottom + (M ? 48 : 36), "heads");
        if (head) {
          title(x2, `Edges of ${state.head}`);
          drawMap(shifted(pen, x2, 26), m, l, edgeLook(m));
        }
      },
    };
  },
  csv() {
    const rows = [["kind", "layer_or_cut", "head", "query", "query_token", "key", "key_token", "value"]],
      blank = ["", ""],
      words = [...D.tokens, ...D.source];
    for (let cut = 0; cut < CUTS; cut++) {
      stream(cut).forEach((x, i) => rows.push(["stream", cut, "", ...blank, i, D.tokens[i], x]));
      rows.push(["offset", cut, "", ...blank, ...blank, D.offset[cut] ?? ""]);
    }
    inputs()
      .slice(N)
      .forEach((x, i) => rows.push(["source", "", "", ...blank, i, D.source[i], x]));
    for (const [kind, name] of M
      ? [
          ["stream", "encoder stream"],
          ["beside", "encoder output"],
        ]
      : [])
      for (let cut = 0; cut < D.encoder[kind].shape[0]; cut++)
        slice(D.encoder[kind], cut).forEach((x, i) => rows.push([name, cut, "", ...blank, i, D.source[i], x]));
    for (const [kind, { heads, numbers: layers }] of Object.entries(KINDS))
      layers.forEach((layer, at) =>
        slice(heads, at).forEach((x, head) =>
          rows.push([KIND_NAMES[kind] + "head", layer, head, ...blank, ...blank, x]),
        ),
      );
    D.layers.forEach((layer, row) => {
      slice(D.ffn, row).forEach((x, i) => rows.push(["ffn", layer, "", i, D.tokens[i], ...blank, x]));
      slice(D.bypass, row).forEach((x, i) => rows.push(["bypass", layer, "", ...blank, i, D.tokens[i], x]));
    });
    for (const e of ORDER.slice(0, 2000))
      rows.push([
        KIND_NAMES[E.kind[e]] + "edge",
        E.layer[e],
        E.head[e],
        place(E.query[e]),
        words[E.query[e]],
        place(E.key[e]),
        words[E.key[e]],
        E.value[e],
      ]);
    return rows;
  },
  file: () => "attribution" + (state.head ? "-" + state.head : ""),
  foot: () =>
    `Checked: at every cut the contributions and the offset add up to the model's own value` +
    (D.error === null ? "" : `, to ${say(D.error, 2)} (relative to the largest)`) +
    (D.edges.strongest ? ` \u00b7 of the edges, the strongest ${D.edges.limit} of each layer are kept here` : ""),
  keys: {
    "[": () => stepEdges(-1),
    "]": () => stepEdges(1),
    f: () => set({ dir: state.dir === "into" ? "from" : "into" }),
    Backspace: () => set({ trail: trail().slice(0, -1).map(edgeId).join("_") }),
    Escape: () => {
      hideTip();
      set(state.trail ? { trail: "" } : state.head ? { head: "" } : { pin: -1 });
    },
  },
  help: {
    text: [
      "The text is coloured by what each token contributed to the target: blue for it, red against it. Tokens and the constants (biases) add up to the target\u2019s value, which is read from the model.",
      "Layer by layer: each row shows the stream at one cut, from what enters the first layer (bottom) to what leaves the last (top). Every row adds up to the same value with its own constants; numbers of different layers do not add up, because what a layer wrote contains what the layers before it wrote.",
      "Curves are edges: what one head moved from a source token to a position. Click one to follow it back to what had reached its source token before. Heads show the sum of their edges, ff what the feed-forward of a layer wrote.",
      ...(D.source.length
        ? [
            M
              ? "Right of the line is the source sentence: below, what sits in the encoder after each of its layers (E), above, what of its output is still to be read. Edges from there to the text are those of cross-attention (X), edges below those of the encoder (E)."
              : "The source sentence reached the target through the encoder and cross-attention; its tokens are coloured, and their edges are not known here.",
          ]
        : []),
      "Click a token to pin it; click a head to see all of its edges. The address of the page keeps what is shown.",
    ],
    keys: [
      ["[ and ]", "fewer and more edges"],
      ["arrows", "move in a figure or along the text"],
      ["Enter", "pin a token, choose a head"],
      ["f", "what reached the pinned token, or where it went"],
      ["Backspace", "one step back in what was followed"],
    ],
  },
};
const KIND_NAMES = { L: "", X: "cross ", E: "encoder " };
// What each input token contributed: those of the text, then those of an encoder-decoder's source sentence.
const inputs = () => [...stream(0), ...(D.source_values ? numbers(D.source_values) : [])];
function stepEdges(by) {
  const range = $("edges");
  range.value = Number(range.value) + by;
  range.oninput();
}

startPage();
