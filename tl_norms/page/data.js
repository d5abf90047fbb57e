// The data of the page: packed arrays, tokens, and numbers as text.

const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const N = D.tokens.length;

// One of 65536 float16 numbers.
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1,
    exponent = (bits >> 10) & 31,
    fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -14 * (fraction / 1024);
}

function bytes(text) {
  const raw = atob(text),
    found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found.buffer;
}

// A packed array as numbers, [slice ...] flat; made once.
function numbers(block) {
  if (block.numbers) return block.numbers;
  const half = new Uint16Array(bytes(block.half)),
    stride = half.length / (block.shape[0] || 1);
  const found = new Float64Array(half.length);
  for (let i = 0; i < half.length; i++) found[i] = fromHalf(half[i]) * block.scale[Math.floor(i / stride)];
  block.numbers = found;
  return found;
}

// Row `index` (or rows, [i, j]) along the first axes of a packed array.
function slice(block, ...index) {
  const values = numbers(block);
  let start = 0,
    size = values.length;
  index.forEach((at, axis) => {
    size /= block.shape[axis];
    start += at * size;
  });
  return values.subarray(start, start + size);
}

// A query × key map: NaN where there is no pair, or no number.
const pairExists = (q, k) => !D.causal || k <= q || k >= N;
function square(flat, columns) {
  const values = new Float64Array(N * columns).fill(NaN);
  let at = 0;
  for (let q = 0; q < N; q++)
    for (let k = 0; k < columns; k++) if (pairExists(q, k)) values[q * columns + k] = flat[at++];
  return { rows: N, columns, values, get: (q, k) => values[q * columns + k] };
}

function matrixOf(rows, columns, value) {
  const values = new Float64Array(rows * columns);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) values[r * columns + c] = value(r, c);
  return { rows, columns, values, get: (r, c) => values[r * columns + c] };
}

// A token as it can be read: spaces around it as dots, control characters spelled out.
function visible(token) {
  if (token === "") return "(empty)";
  const dotted = token.replace(/^ +| +$/g, (spaces) => "\u00b7".repeat(spaces.length));
  return dotted.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, (c) =>
    c === "\n"
      ? "\u23ce"
      : c === "\t"
        ? "\u21e5"
        : c === "\r"
          ? "\\r"
          : "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"),
  );
}
const LABELS = D.tokens.map(visible),
  KEYS = LABELS.concat(D.source.map(visible)); // source sentence last
const place = (k) => (k < N ? String(D.positions[k]) : `source ${k - N}`);
const quoted = (k) => `\u201c${KEYS[k]}\u201d`;

function say(x, digits = 4) {
  if (x === null || x === undefined || Number.isNaN(x)) return "not a number";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e6 || size < 1e-4)
    return x
      .toExponential(digits - 2)
      .replace("-", "\u2212")
      .replace("e\u2212", "e-")
      .replace("e-", "e\u2212");
  return String(Number(x.toPrecision(digits))).replace("-", "\u2212");
}
// Three digits, zeros kept: numbers in a column.
const tabular = (x) => {
  const size = Math.abs(x);
  if (!(size >= 1e-4 && size < 1e6)) return signed(x);
  const decimals = clamp(2 - Math.floor(Math.log10(size)), 0, 7);
  return (x > 0 ? "+" : "\u2212") + size.toFixed(decimals);
};
const signed = (x, digits = 3) => (x > 0 ? "+" : "") + say(x, digits);
const percent = (x) => (Number.isFinite(x) ? (x < 0.1 ? (100 * x).toFixed(1) : Math.round(100 * x)) + " %" : "\u2013");
// Signed numbers that stand together: as many decimals as the largest needs for two digits, and one below a hundred.
function signedLike(top) {
  const decimals = clamp(1 - Math.floor(Math.log10(top || 1)), top < 100 ? 1 : 0, 8);
  return (x) => {
    const text = Math.abs(x).toFixed(decimals);
    return Number(text) === 0 ? "0" : (x > 0 ? "+" : "\u2212") + text;
  };
}
const sum = (values) => values.reduce((a, b) => a + b, 0);
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const mean = (values) => {
  const real = [...values].filter(Number.isFinite);
  return real.length ? sum(real) / real.length : NaN;
};
const largest = (values) => {
  let top = 0;
  for (const v of values) if (Number.isFinite(v) && Math.abs(v) > top) top = Math.abs(v);
  return top;
};
