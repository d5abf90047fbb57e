// What both pages share: state and its link, the tooltip, search, theme, keys, and the start.
//
// A page is an object PAGE with: defaults, valid(state), title, subtitle, start(), render(), chips(), caption(), tip(i),
// figure() -> {width, height, draw(pen)}, csv() -> rows, step(by), keys, help.

function make(tag, classes = "", text) {
  const element = document.createElement(tag);
  if (classes) element.className = classes;
  if (text !== undefined) element.textContent = text;
  if (tag === "button") element.type = "button";
  return element;
}

// --- state and link ----------------------------------------------------------------------------------------------

let state = {};
const hits = new Set();
const syncs = [];

// What the link says, where it makes sense; what differs from the defaults is all that a link holds.
function readLink() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1))),
    found = { theme: "", ...PAGE.defaults };
  for (const name in found) {
    if (given[name] === undefined) continue;
    const value = typeof found[name] === "number" ? Number(given[name]) : given[name];
    if (!Number.isNaN(value)) found[name] = value;
  }
  found.theme = ["light", "dark"].includes(found.theme) ? found.theme : "";
  return PAGE.valid(found);
}
function writeLink() {
  const link = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) if (value !== (PAGE.defaults[name] ?? "")) link.set(name, value);
  const text = link.toString(),
    now = location.href.split("#")[0];
  try {
    history.replaceState(null, "", now + (text ? "#" + text : ""));
  } catch {
    /* a frame without an address */
  }
}
function set(changes) {
  state = PAGE.valid({ ...state, ...changes });
  writeLink();
  renderAll();
}
function renderAll() {
  if (state.theme) document.documentElement.dataset.theme = state.theme;
  else delete document.documentElement.dataset.theme;
  $("theme").textContent = theme() === "dark" ? "Light" : "Dark";
  hideTip();
  for (const sync of syncs) sync();
  PAGE.render();
  paintChips();
  $("caption").replaceChildren(
    ...PAGE.caption().map((part) => (typeof part === "string" ? part : make("b", "", part.strong))),
  );
}

// --- tooltip -----------------------------------------------------------------------------------------------------

// content: {head, rows: [[name, value, more], ...]}
function showTip(content, box) {
  if (!content) return hideTip();
  const tip = $("tip"),
    table = make("table");
  for (const row of content.rows) {
    const line = make("tr");
    row.forEach((text, i) => line.append(make(i ? "td" : "th", "", text)));
    table.append(line);
  }
  tip.replaceChildren(make("p", "", content.head), table);
  tip.hidden = false;
  const { offsetWidth: w, offsetHeight: h } = tip;
  const x = box.right + 10 + w > innerWidth ? box.left - 10 - w : box.right + 10;
  const y = box.bottom + 8 + h > innerHeight ? box.top - 8 - h : box.bottom + 8;
  tip.style.left = clamp(x, 6, Math.max(6, innerWidth - w - 6)) + "px";
  tip.style.top = clamp(y, 6, Math.max(6, innerHeight - h - 6)) + "px";
  $("readout").textContent = [content.head, ...content.rows.map((row) => row.filter(Boolean).join(" "))].join("; ");
}
function hideTip() {
  $("tip").hidden = true;
}

// Where `value` stands among `values` (by size), and its share of their sum.
function standing(value, values) {
  const sizes = values.filter(Number.isFinite).map(Math.abs),
    whole = sum(sizes);
  return {
    rank: 1 + sizes.filter((size) => size > Math.abs(value)).length,
    of: sizes.length,
    share: whole ? Math.abs(value) / whole : NaN,
  };
}

// --- search ------------------------------------------------------------------------------------------------------

function search(again) {
  const wanted = $("search").value.trim().toLowerCase();
  hits.clear();
  if (wanted)
    KEYS.forEach((label, i) => {
      if (label.toLowerCase().includes(wanted) || [...D.tokens, ...D.source][i].toLowerCase().includes(wanted))
        hits.add(i);
    });
  $("search").classList.toggle("none", Boolean(wanted) && !hits.size);
  const found = [...hits];
  if (again && found.length) return set({ pin: found.find((i) => i > state.pin) ?? found[0] });
  renderAll();
}

// --- keys and start ----------------------------------------------------------------------------------------------

const KEYBOARD = {
  "/": () => $("search").focus(),
  "?": () => $("helping").showModal(),
  t: () => set({ theme: theme() === "dark" ? "light" : "dark" }),
  Escape: () => {
    hideTip();
    $("download").open = false;
    if (state.pin >= 0) set({ pin: -1 });
  },
};
function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("helping").open) return;
  if (event.target === $("search")) {
    if (event.key === "Escape") {
      $("search").value = "";
      search(false);
      $("search").blur();
    }
    if (event.key === "Enter") search(true);
    return;
  }
  if (event.target.tagName === "SELECT") return;
  const act = PAGE.keys[event.key] || KEYBOARD[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}
function help() {
  const list = make("dl", "keys");
  for (const [key, what] of [
    ...PAGE.help.keys,
    ["/", "search; Enter pins the next match"],
    ["t", "light or dark"],
    ["Esc", "let go of the pinned token"],
  ])
    list.append(make("dt", "", key), make("dd", "", what));
  $("helptext").replaceChildren(
    make("h2", "", "How to read this page"),
    ...PAGE.help.text.map((text) => make("p", "", text)),
    make("h2", "", "Keyboard"),
    list,
  );
}
function startPage() {
  $("title").textContent = D.model;
  $("subtitle").textContent = PAGE.subtitle;
  buildChips();
  PAGE.start();
  help();
  $("search").oninput = () => search(false);
  $("theme").onclick = KEYBOARD.t;
  $("help").onclick = KEYBOARD["?"];
  for (const button of $("download").querySelectorAll("button"))
    button.onclick = () => {
      $("download").open = false;
      return download(button.dataset.format);
    };
  addEventListener("keydown", pressed);
  addEventListener("pointerdown", (event) => {
    if (!$("download").contains(event.target)) $("download").open = false;
  });
  addEventListener("hashchange", () => {
    state = readLink();
    renderAll();
  });
  addEventListener("scroll", hideTip, { passive: true });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) {
      width = innerWidth;
      renderAll();
    }
  });
  systemDark.addEventListener("change", () => renderAll());
  $("footer").textContent =
    PAGE.foot() +
    " \u00b7 " +
    Object.entries(D.software)
      .map(([name, version]) => `${name} ${version}`)
      .join(" \u00b7 ");
  state = readLink();
  renderAll();
}
