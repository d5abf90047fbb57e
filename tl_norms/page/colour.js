// Colours: one hue for norms, one for weights, two for signed numbers (blue for, red against), in light and dark.

const RAMPS = {
  light: {
    norm: ["#f6f9fd", "#cfe1f3", "#8dbbe3", "#3f83c4", "#134d92", "#08264f"],
    weight: ["#faf8fc", "#e2d6ee", "#bfa2d9", "#9068b8", "#643c8e", "#331650"],
    signed: ["#8e1426", "#cf4a41", "#f0a587", "#fbe3d8", "#f7f7f7", "#dbe9f4", "#8fc1e0", "#3580bd", "#0f437f"],
  },
  dark: {
    norm: ["#1b222d", "#1f3d62", "#2b659f", "#4b96d6", "#95c8f3", "#e6f3ff"],
    weight: ["#221d2b", "#3d2c57", "#614389", "#8f68bd", "#bf9fe2", "#efe4fc"],
    signed: ["#ffc3aa", "#f08663", "#b8483a", "#63302f", "#262b34", "#24415f", "#3172ab", "#6db3ee", "#bfe0ff"],
  },
};
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
for (const theme of Object.values(RAMPS)) for (const name in theme) theme[name] = theme[name].map(rgb);

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => document.documentElement.dataset.theme || (systemDark.matches ? "dark" : "light");

// The colour of a share of the largest: 0..1, or -1..1 for signed numbers.
function colourAt(kind, share) {
  const stops = RAMPS[theme()][kind];
  const at = (kind === "signed" ? clamp((share + 1) / 2, 0, 1) : clamp(share, 0, 1)) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2),
    part = at - low;
  return stops[low].map((c, i) => Math.round(c + part * (stops[low + 1][i] - c)));
}
const css = (c) => `rgb(${c[0]},${c[1]},${c[2]})`;
const colour = (kind, share) => css(colourAt(kind, share));
const inkOn = (kind, share) => {
  const [r, g, b] = colourAt(kind, share).map((c) => {
    const x = c / 255;
    return x <= 0.04 ? x / 12.9 : ((x + 0.055) / 1.055) ** 2.4;
  });
  const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return light > 0.3 ? "#12161d" : "#ffffff";
};
const gradient = (kind) => {
  const shares = kind === "signed" ? [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1] : [0, 0.2, 0.4, 0.6, 0.8, 1];
  return `linear-gradient(to right,${shares.map((share) => colour(kind, share)).join(",")})`;
};
const ink = (name) =>
  getComputedStyle(document.documentElement)
    .getPropertyValue("--" + name)
    .trim();
