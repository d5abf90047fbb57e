// The text as a row of coloured tokens, on the screen and on a sheet.

function buildChips() {
  KEYS.forEach((label, i) => {
    if (i === N) $("chips").append(make("span", "label", "source sentence"));
    const chip = make("button", "chip");
    chip.append(make("span", "", label), make("small"));
    chip.onclick = () => set({ pin: state.pin === i ? -1 : i });
    chip.onpointerenter = (event) => {
      if (event.pointerType === "mouse") showTip(PAGE.tip(i), chip.getBoundingClientRect());
    };
    chip.onpointerleave = hideTip;
    chip.onfocus = () => {
      if (chip.matches(":focus-visible")) showTip(PAGE.tip(i), chip.getBoundingClientRect());
    };
    chip.onblur = hideTip;
    chip.onkeydown = (event) => {
      const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: KEYS.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      (chips()[to] || chip).focus();
    };
    $("chips").append(chip);
  });
  $("chips").classList.toggle("long", KEYS.length > 150);
}
const chips = () => [...$("chips").querySelectorAll(".chip")];
function paintChips() {
  const look = PAGE.chips();
  const tabbed = state.pin >= 0 ? state.pin : 0; // one stop for the tab key; arrows move from there
  chips().forEach((chip, i) => {
    const value = look.values[i],
      real = Number.isFinite(value),
      share = look.top ? value / look.top : 0;
    chip.style.background = real ? colour(look.kind, share) : "";
    chip.style.color = real ? inkOn(look.kind, share) : "";
    chip.lastChild.textContent = look.numbers && real ? look.numbers(value) : "";
    chip.classList.toggle("pinned", state.pin === i);
    chip.classList.toggle("hit", hits.has(i));
    chip.setAttribute("aria-pressed", String(state.pin === i));
    chip.setAttribute("aria-label", `${KEYS[i]}, position ${place(i)}` + (real ? `, ${say(value, 3)}` : ""));
    chip.tabIndex = i === tabbed ? 0 : -1;
  });
  $("chips").classList.toggle("numbered", Boolean(look.numbers));
  $("legend").replaceChildren(look.legend, colourBar(look.kind, look.top, "", look.range));
}
// The sentence on a sheet; returns its height.
function drawSentence(pen, width) {
  const look = PAGE.chips(),
    size = 13,
    line = look.numbers ? 40 : 28;
  let x = 0,
    y = 0;
  KEYS.forEach((label, i) => {
    const value = look.values[i],
      real = Number.isFinite(value),
      share = look.top ? value / look.top : 0;
    const text = shortened(label, size, width - 12),
      number = look.numbers && real ? look.numbers(value) : "";
    const w = Math.max(textWidth(text, size), textWidth(number, 9)) + 10;
    if (x + w > width || i === N) {
      x = 0;
      y += line;
    }
    pen.rect(x, y, w, 22, real ? colour(look.kind, share) : ink("void"));
    pen.text(x + w / 2, y + 11, text, { size, anchor: "middle", fill: real ? inkOn(look.kind, share) : ink("ink") });
    if (number) pen.text(x + w / 2, y + 29, number, { size: 9, anchor: "middle", fill: ink("soft") });
    if (state.pin === i) pen.frame(x, y, w, 22, ink("mark"), 2);
    x += w + 3;
  });
  return y + line;
}
