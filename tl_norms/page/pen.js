// One drawing, two pens: a canvas for the screen, SVG to keep. PNG is the SVG, painted.

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";
const ruler = document.createElement("canvas").getContext("2d");
function textWidth(text, size, weight = 400) {
  ruler.font = `${weight} ${size}px ${FONT}`;
  return ruler.measureText(text).width;
}
function shortened(text, size, room, weight = 400) {
  if (textWidth(text, size, weight) <= room) return text;
  const letters = [...text];
  while (letters.length > 1 && textWidth(letters.join("") + "\u2026", size, weight) > room) letters.pop();
  return letters.join("") + "\u2026";
}

function canvasPen(canvas, width, height) {
  const ratio = width * height > 8e6 ? 1 : window.devicePixelRatio || 1,
    pen = canvas.getContext("2d");
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return {
    image(sheet) {
      pen.drawImage(sheet, 0, 0, width, height);
    },
    rect(x, y, w, h, fill) {
      pen.fillStyle = fill;
      pen.fillRect(x, y, w, h);
    },
    frame(x, y, w, h, stroke, thick = 2) {
      pen.strokeStyle = stroke;
      pen.lineWidth = thick;
      pen.strokeRect(x, y, w, h);
    },
    text(x, y, text, { size = 11, fill, anchor = "start", turned = false, weight = 400 }) {
      pen.save();
      pen.translate(x, y);
      if (turned) pen.rotate(-Math.PI / 2);
      pen.font = `${weight} ${size}px ${FONT}`;
      pen.fillStyle = fill;
      pen.textAlign = anchor === "middle" ? "center" : anchor;
      pen.textBaseline = "middle";
      pen.fillText(text, 0, 0);
      pen.restore();
    },
    line(points, stroke, thick = 1, alpha = 1) {
      pen.globalAlpha = alpha;
      pen.strokeStyle = stroke;
      pen.lineWidth = thick;
      pen.lineJoin = "round";
      pen.beginPath();
      points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
      pen.stroke();
      pen.globalAlpha = 1;
    },
    curve(x1, y1, x2, y2, stroke, thick, alpha = 1) {
      const middle = (y1 + y2) / 2;
      pen.globalAlpha = alpha;
      pen.strokeStyle = stroke;
      pen.lineWidth = thick;
      pen.lineCap = "round";
      pen.beginPath();
      pen.moveTo(x1, y1);
      pen.bezierCurveTo(x1, middle, x2, middle, x2, y2);
      pen.stroke();
      pen.globalAlpha = 1;
    },
    circle(x, y, r, fill, alpha = 1) {
      pen.globalAlpha = alpha;
      pen.fillStyle = fill;
      pen.beginPath();
      pen.arc(x, y, r, 0, 2 * Math.PI);
      pen.fill();
      pen.globalAlpha = 1;
    },
  };
}

const escaped = (text) =>
  String(text)
    .replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c])
    .replace(
      /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g,
      "\ufffd",
    );
function svgPen() {
  const parts = [],
    r = (x) => Math.round(x * 100) / 100;
  return {
    parts,
    rect(x, y, w, h, fill) {
      parts.push(`<rect x="${r(x)}" y="${r(y)}" width="${r(w)}" height="${r(h)}" fill="${fill}"/>`);
    },
    frame(x, y, w, h, stroke, thick = 2) {
      parts.push(
        `<rect x="${r(x)}" y="${r(y)}" width="${r(w)}" height="${r(h)}" fill="none" stroke="${stroke}" stroke-width="${thick}"/>`,
      );
    },
    text(x, y, text, { size = 11, fill, anchor = "start", turned = false, weight = 400 }) {
      const turn = turned ? ` transform="rotate(-90 ${r(x)} ${r(y)})"` : "";
      parts.push(
        `<text x="${r(x)}" y="${r(y)}" font-size="${size}" font-weight="${weight}" fill="${fill}" text-anchor="${anchor}" ` +
          `dominant-baseline="central" xml:space="preserve"${turn}>${escaped(text)}</text>`,
      );
    },
    line(points, stroke, thick = 1, alpha = 1) {
      parts.push(
        `<polyline points="${points.map(([x, y]) => r(x) + "," + r(y)).join(" ")}" fill="none" stroke="${stroke}" ` +
          `stroke-width="${thick}" stroke-opacity="${alpha}" stroke-linejoin="round"/>`,
      );
    },
    curve(x1, y1, x2, y2, stroke, thick, alpha = 1) {
      const m = r((y1 + y2) / 2);
      parts.push(
        `<path d="M${r(x1)} ${r(y1)}C${r(x1)} ${m} ${r(x2)} ${m} ${r(x2)} ${r(y2)}" fill="none" stroke="${stroke}" ` +
          `stroke-width="${r(thick)}" stroke-opacity="${alpha}" stroke-linecap="round"/>`,
      );
    },
    circle(x, y, radius, fill, alpha = 1) {
      parts.push(`<circle cx="${r(x)}" cy="${r(y)}" r="${r(radius)}" fill="${fill}" fill-opacity="${alpha}"/>`);
    },
  };
}

// A pen that draws elsewhere on the same sheet.
function shifted(pen, dx, dy) {
  return {
    rect: (x, y, ...rest) => pen.rect(x + dx, y + dy, ...rest),
    frame: (x, y, ...rest) => pen.frame(x + dx, y + dy, ...rest),
    text: (x, y, ...rest) => pen.text(x + dx, y + dy, ...rest),
    line: (points, ...rest) =>
      pen.line(
        points.map(([x, y]) => [x + dx, y + dy]),
        ...rest,
      ),
    curve: (x1, y1, x2, y2, ...rest) => pen.curve(x1 + dx, y1 + dy, x2 + dx, y2 + dy, ...rest),
    circle: (x, y, ...rest) => pen.circle(x + dx, y + dy, ...rest),
  };
}
