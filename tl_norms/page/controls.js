// Controls that set one part of the state each, and follow it.

function control(place, label, ...elements) {
  const box = make("div", "control");
  if (label) box.append(make("span", "label", label));
  box.append(...elements);
  place.append(box);
  return box;
}
function segmented(name, choices, shown = () => true, place = $("controls")) {
  const box = make("div", "segmented");
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", name);
  const buttons = choices.map(({ value, text, title = "", off = false }) => {
    const button = make("button", "", text);
    button.title = title;
    button.disabled = off;
    button.dataset.value = value;
    button.onclick = () => set({ [name]: value });
    box.append(button);
    return button;
  });
  const around = control(place, "", box);
  syncs.push(() => {
    around.hidden = !shown();
    for (const button of buttons)
      button.setAttribute("aria-pressed", String(button.dataset.value === String(state[name])));
  });
  return around;
}
function chooser(label, name, choices, shown = () => true) {
  const list = make("select");
  list.id = name;
  list.setAttribute("aria-label", label);
  for (const { value, text } of choices) {
    const option = make("option", "", text);
    option.value = value;
    list.append(option);
  }
  list.oninput = () => set({ [name]: typeof PAGE.defaults[name] === "number" ? Number(list.value) : list.value });
  const around = control($("controls"), label, list);
  syncs.push(() => {
    list.value = state[name];
    around.hidden = !shown();
  });
}
// A slider with a step back and forth: of numbers that need not follow each other.
function stepper(label, name, values, text = String) {
  const range = make("input"),
    shown = make("output"),
    back = make("button", "step", "\u2039"),
    forth = make("button", "step", "\u203a");
  range.type = "range";
  range.id = name;
  range.min = 0;
  range.max = values.length - 1;
  range.setAttribute("aria-label", label);
  back.setAttribute("aria-label", "previous " + label.toLowerCase());
  forth.setAttribute("aria-label", "next " + label.toLowerCase());
  const go = (at) => set({ [name]: values[clamp(at, 0, values.length - 1)] });
  range.oninput = () => go(Number(range.value));
  back.onclick = () => go(values.indexOf(state[name]) - 1);
  forth.onclick = () => go(values.indexOf(state[name]) + 1);
  control($("controls"), label, back, range, forth, shown);
  syncs.push(() => {
    range.value = values.indexOf(state[name]);
    shown.textContent = text(state[name]);
    range.setAttribute("aria-valuetext", label + " " + text(state[name]));
    range.disabled = back.disabled = forth.disabled = values.length < 2;
  });
}
