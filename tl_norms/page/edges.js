// The numbers of an attribution: its cuts, and its edges, the strongest first.
//
// Of an encoder-decoder both stacks stand in one drawing: the rows of the encoder's cuts, then those of the decoder's;
// the columns of the text, then those of the source sentence. Above the encoder, the columns of the source sentence hold
// what is still to be read of its output.

D.causal = D.edges.causal;
const M = D.encoder ? D.source.length : 0,
  COLUMNS = N + M,
  CUTS = D.stream.shape[0],
  BASE = D.encoder ? D.encoder.stream.shape[0] : 0, // rows of the encoder's cuts
  ROWS = BASE + CUTS,
  HEADS = Math.max(D.heads.shape[1], D.encoder ? D.encoder.heads.shape[1] : 0);
const stream = (cut) => slice(D.stream, cut);
const rowOf = new Map(D.layers.map((layer, row) => [layer, row]));
const PADDING = new Set(D.padding);

// What sits at each column in a row; NaN where nothing can.
const VALUES = Array.from({ length: ROWS }, (_, row) => {
  const values = new Float64Array(COLUMNS).fill(NaN);
  if (row >= BASE) values.set(stream(row - BASE));
  if (M) values.set(row < BASE ? slice(D.encoder.stream, row) : slice(D.encoder.beside, row - BASE), N);
  for (const i of PADDING) values[i] = NaN;
  return values;
});
const rowName = (row) => {
  const cut = row < BASE ? row : row - BASE,
    last = (row < BASE ? BASE : CUTS) - 1;
  return (row < BASE ? "E " : "") + (cut === 0 ? "in" : cut === last ? "out" : cut);
};

// --- heads ---------------------------------------------------------------------------------------------------------

// L: a head of the stack that is written; X: of cross-attention; E: of the encoder.
const KINDS = {
  L: { edges: D.edges, heads: D.heads, numbers: D.layers, row: (layer) => BASE + layer, query: 0, key: 0 },
  ...(M && {
    X: {
      edges: D.encoder.cross,
      heads: D.encoder.cross_heads,
      numbers: D.layers,
      row: (layer) => BASE + layer,
      query: 0,
      key: N,
    },
    E: {
      edges: D.encoder.edges,
      heads: D.encoder.heads,
      numbers: Array.from({ length: BASE - 1 }, (_, layer) => layer),
      row: (layer) => layer,
      query: N,
      key: N,
    },
  }),
};
const headName = (kind, layer, head) => `${kind}${layer}H${head}`;
const headValue = (kind, layer, head) => slice(KINDS[kind].heads, KINDS[kind].numbers.indexOf(layer))[head];
function headNamed(name) {
  const found = /^([LXE])(\d+)H(\d+)$/.exec(name);
  if (!found || !KINDS[found[1]]) return null;
  const [kind, layer, head] = [found[1], Number(found[2]), Number(found[3])];
  return KINDS[kind].numbers.includes(layer) && head < KINDS[kind].heads.shape[1] ? { kind, layer, head } : null;
}
const headOf = () => headNamed(state.head);

// --- edges ---------------------------------------------------------------------------------------------------------

// Every edge: parallel arrays, strongest first in ORDER. `query` and `key` are columns; an edge goes from `row` to the next.
const E = (() => {
  const found = { kind: [], layer: [], head: [], query: [], key: [], value: [], row: [] };
  for (const [kind, of] of Object.entries(KINDS)) {
    const [heads, queries, keys] = of.edges.shape;
    const add = (layer, head, query, key, value) => {
      if (!value) return;
      found.kind.push(kind);
      found.layer.push(layer);
      found.head.push(head);
      found.query.push(of.query + query);
      found.key.push(of.key + key);
      found.value.push(value);
      found.row.push(of.row(layer));
    };
    of.numbers.forEach((layer, at) => {
      if (of.edges.all) {
        const values = slice(of.edges.all, at);
        let next = 0;
        for (let h = 0; h < heads; h++)
          for (let q = 0; q < queries; q++)
            for (let k = 0; k < (of.edges.causal ? q + 1 : keys); k++) add(layer, h, q, k, values[next++]);
      } else if (of.edges.strongest) {
        const part = of.edges.strongest[at],
          [head, query, key] = [part.head, part.query, part.key].map((text) => new Uint16Array(bytes(text)));
        numbers(part.value).forEach((value, i) => add(layer, head[i], query[i], key[i], value));
      }
    });
  }
  return found;
})();
const COUNT = E.value.length;
// The strongest 20,000 in order: enough to draw, list and follow; sorting millions would be felt.
const ORDER = (() => {
  const top = largest(E.value);
  let floor = top,
    chosen = [];
  while (chosen.length < Math.min(20000, COUNT) && floor > top * 1e-12) {
    floor /= 4;
    chosen = [];
    for (let i = 0; i < COUNT; i++) if (Math.abs(E.value[i]) >= floor) chosen.push(i);
  }
  return chosen.sort((a, b) => Math.abs(E.value[b]) - Math.abs(E.value[a])).slice(0, 20000);
})();
const RANK = new Map(ORDER.map((edge, rank) => [edge, rank + 1]));
const edgeName = (e) => headName(E.kind[e], E.layer[e], E.head[e]);
const edgeId = (e) => [(E.kind[e] === "L" ? "" : E.kind[e]) + E.layer[e], E.head[e], E.query[e], E.key[e]].join(".");
const BY_ID = new Map(ORDER.map((e) => [edgeId(e), e]));
const edgeText = (e) => `${KEYS[E.key[e]]} \u2192 ${KEYS[E.query[e]]}`;

// The strongest edges that brought something to a column before a row.
const arriving = (column, row, count) =>
  ORDER.filter((e) => E.query[e] === column && E.key[e] !== column && E.row[e] < row).slice(0, count);

const trail = () => (state.trail ? state.trail.split("_").map((id) => BY_ID.get(id)) : []);

// The edges that are drawn and listed: all, or those of a head, or those that touch the pinned token.
function edgesShown(count) {
  const head = headOf(),
    found = [];
  for (const e of ORDER) {
    if (found.length >= count) break;
    if (head && edgeName(e) !== state.head) continue;
    if (state.pin >= 0 && (state.dir === "into" ? E.query[e] : E.key[e]) !== state.pin) continue;
    if (E.query[e] === E.key[e] && !head) continue; // what a position moved to itself
    found.push(e);
  }
  return found;
}
