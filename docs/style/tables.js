// Tables of more than 30 rows get a filter, and a header that stays in sight. Without JavaScript they are plain tables.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".md-typeset table")) {
    const rows = [...table.querySelectorAll("tbody tr")];
    if (rows.length <= 30) continue;
    document.body.classList.add("has-long-table");
    const box = document.createElement("div"), frame = document.createElement("div");
    const filter = document.createElement("input"), count = document.createElement("span");
    box.className = "long-table";
    frame.className = "rows";
    count.className = "count";
    filter.type = "search";
    filter.placeholder = "Filter, e.g. llama, sandwich, refused";
    filter.setAttribute("aria-label", "Filter rows");
    (table.closest(".md-typeset__scrollwrap") || table).replaceWith(box);
    frame.append(table);
    box.append(filter, count, frame);
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const show = () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, i) => {
        row.hidden = !words.every((word) => texts[i].includes(word));
        shown += !row.hidden;
      });
      count.textContent = `${shown} of ${rows.length}`;
    };
    filter.addEventListener("input", show);
    show();
  }
});
