"use strict";
(function () {
  const table = document.querySelector(".matrix");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const form = document.querySelector(".find");
  const told = form.querySelector("output");

  /* What a row is sorted by in a column; a cell that spans several stands in all of them. */
  function key(row, column) {
    let at = 0;
    for (const cell of row.cells) {
      at += cell.colSpan;
      if (column < at) return cell.dataset.k !== undefined ? cell.dataset.k : cell.textContent.trim().toLowerCase();
    }
    return "";
  }

  const collator = new Intl.Collator("en", { numeric: true });
  function compare(a, b) {
    const numbers = a !== "" && b !== "" && !isNaN(a) && !isNaN(b);
    return numbers ? Number(a) - Number(b) : collator.compare(a, b);
  }
  Array.from(table.tHead.rows[0].cells).forEach(function (head, column) {
    const button = document.createElement("button");
    button.type = "button";
    while (head.firstChild) button.append(head.firstChild);
    head.append(button);
    button.addEventListener("click", function () {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = rows.map(function (row, i) { return [key(row, column), i, row]; });
      keyed.sort(function (a, b) { return (down ? -1 : 1) * compare(a[0], b[0]) || a[1] - b[1]; });
      body.append(...keyed.map(function (k) { return k[2]; }));
    });
  });

  const texts = rows.map(function (row) { return row.textContent.toLowerCase(); });
  function filter() {
    const words = form.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const outcome = form.outcome.value;
    let shown = 0;
    rows.forEach(function (row, i) {
      const fits = words.every(function (w) { return texts[i].includes(w); }) &&
        (!outcome || row.querySelector('[data-o="' + outcome + '"]'));
      row.hidden = !fits;
      if (fits) shown += 1;
    });
    told.textContent = shown === rows.length ? rows.length + " cells" : shown + " of " + rows.length + " cells";
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.hidden = false;
  filter();
})();
