// The numbers of an attribution: its cuts, and its edges, the strongest first.

D.causal = D.edges.causal;
const CUTS = D.stream.shape[0],
  HEADS = D.heads.shape[1];
const stream = (cut) => slice(D.stream, cut);
const rowOf = new Map(D.layers.map((layer, row) => [layer, row]));
const headName = (layer, head) => `L${layer}H${head}`;
const PADDING = new Set(D.padding);

// --- edges ---------------------------------------------------------------------------------------------------------

// Every edge: parallel arrays, strongest first in ORDER.
const E = (() => {
  const [heads, queries, keys] = D.edges.shape,
    found = { layer: [], head: [], query: [], key: [], value: [] };
  const add = (layer, head, query, key, value) => {
    if (!value) return;
    found.layer.push(layer);
    found.head.push(head);
    found.query.push(query);
    found.key.push(key);
    found.value.push(value);
  };
  D.layers.forEach((layer, row) => {
    if (D.edges.all) {
      const values = slice(D.edges.all, row);
      let at = 0;
      for (let h = 0; h < heads; h++)
        for (let q = 0; q < queries; q++)
          for (let k = 0; k < (D.edges.causal ? q + 1 : keys); k++) add(layer, h, q, k, values[at++]);
    } else if (D.edges.strongest) {
      const part = D.edges.strongest[row],
        [head, query, key] = [part.head, part.query, part.key].map((text) => new Uint16Array(bytes(text)));
      numbers(part.value).forEach((value, i) => add(layer, head[i], query[i], key[i], value));
    }
  });
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
const edgeId = (e) => [E.layer[e], E.head[e], E.query[e], E.key[e]].join(".");
const BY_ID = new Map(ORDER.map((e) => [edgeId(e), e]));
const edgeText = (e) => `${LABELS[E.key[e]]} \u2192 ${LABELS[E.query[e]]}`;

// The strongest edges that brought something to a position before a layer.
const arriving = (position, layer, count) =>
  ORDER.filter((e) => E.query[e] === position && E.key[e] !== position && E.layer[e] < layer).slice(0, count);

const trail = () => (state.trail ? state.trail.split("_").map((id) => BY_ID.get(id)) : []);
const headOf = () => {
  const found = /^L(\d+)H(\d+)$/.exec(state.head);
  return found ? { layer: Number(found[1]), head: Number(found[2]) } : null;
};

// The edges that are drawn and listed: all, or those of a head, or those that touch the pinned token.
function edgesShown(count) {
  const head = headOf(),
    found = [];
  for (const e of ORDER) {
    if (found.length >= count) break;
    if (head && (E.layer[e] !== head.layer || E.head[e] !== head.head)) continue;
    if (state.pin >= 0 && (state.dir === "into" ? E.query[e] : E.key[e]) !== state.pin) continue;
    if (E.query[e] === E.key[e] && !head) continue; // what a position moved to itself
    found.push(e);
  }
  return found;
}
