// What is shown, to keep: SVG, PNG (the SVG, painted) and CSV.

function svgText() {
  const margin = 20,
    figure = PAGE.figure(),
    pen = svgPen(),
    width = figure.width + 2 * margin;
  const caption = wrapped($("caption").textContent, 13, figure.width);
  let y = margin + 8;
  pen.text(margin, y, `${D.model} \u00b7 ${PAGE.title}`, { size: 16, weight: 650, fill: ink("ink") });
  y += 22;
  for (const line of caption) {
    pen.text(margin, y, line, { size: 13, fill: ink("soft") });
    y += 17;
  }
  y += 4;
  y += drawSentence(shifted(pen, margin, y), figure.width) + 6;
  for (const line of wrapped(PAGE.chips().legend, 11, figure.width)) {
    pen.text(margin, y, line, { size: 11, fill: ink("soft") });
    y += 15;
  }
  y += 12;
  figure.draw(shifted(pen, margin, y));
  const height = Math.ceil(y + figure.height + margin);
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="${FONT}">` +
    `<title>${escaped(document.title)}</title><rect width="100%" height="100%" fill="${ink("page")}"/>${pen.parts.join("")}</svg>`
  );
}
function wrapped(text, size, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = lines[lines.length - 1] + (lines[lines.length - 1] ? " " : "") + word;
    if (textWidth(longer, size) > width && lines[lines.length - 1]) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}
const field = (value) => (/[",\r\n]/.test(String(value)) ? `"${String(value).replace(/"/g, '""')}"` : String(value));
const csvText = () =>
  "\ufeff" +
  PAGE.csv()
    .map((row) => row.map((value) => field(Number.isNaN(value) ? "" : value)).join(","))
    .join("\r\n") +
  "\r\n";
function pngBlob(text) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => {
      const sheet = document.createElement("canvas");
      sheet.width = 2 * image.width;
      sheet.height = 2 * image.height;
      sheet.getContext("2d").drawImage(image, 0, 0, sheet.width, sheet.height);
      sheet.toBlob((blob) => (blob ? done(blob) : failed(new Error("the picture is too large"))), "image/png");
    };
    image.onerror = () => failed(new Error("the picture could not be drawn"));
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
  });
}
async function exported(format) {
  if (format === "csv") return new Blob([csvText()], { type: "text/csv" });
  if (format === "svg") return new Blob([svgText()], { type: "image/svg+xml" });
  return pngBlob(svgText());
}
async function download(format) {
  const blob = await exported(format),
    link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = PAGE.file() + "." + format;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
