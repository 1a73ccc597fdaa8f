"use strict";
(function () {
  const data = document.getElementById("charts");
  const specs = data ? JSON.parse(data.textContent) : {};
  for (const [id, spec] of Object.entries(specs)) {
    const spot = document.getElementById(id);
    if (!spot) continue;
    window
      .vegaEmbed(spot, spec, { mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false })
      .then(function () { spot.classList.add("drawn"); })
      .catch(function (error) {
        spot.textContent = "This chart could not be drawn (" + error.message + "); its numbers are in the table below.";
      });
  }

  for (const box of document.querySelectorAll("[data-filter]")) {
    const input = box.querySelector("input");
    const count = box.querySelector("output");
    const rows = Array.from(document.getElementById(box.dataset.filter).tBodies[0].rows);
    const texts = rows.map(function (row) { return row.textContent.toLowerCase(); });
    const apply = function () {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach(function (row, i) {
        row.hidden = !words.every(function (word) { return texts[i].includes(word); });
        if (!row.hidden) shown += 1;
      });
      count.textContent = shown + " of " + rows.length + " shown";
    };
    input.addEventListener("input", apply);
    box.hidden = false;
    apply();
  }

  let opened = [];
  window.addEventListener("beforeprint", function () {
    opened = Array.from(document.querySelectorAll("details.print:not([open])"));
    for (const d of opened) d.open = true;
  });
  window.addEventListener("afterprint", function () {
    for (const d of opened) d.open = false;
  });
})();
