"use strict";
(function () {
  const data = document.getElementById("charts");
  const specs = data ? JSON.parse(data.textContent) : {};

  /* What each slider refuses: chart -> "before" or "after" -> the value below which an example is refused. */
  const cuts = {};
  const tables = [];

  const spots = {};
  for (const box of document.querySelectorAll("[data-slider]")) spots[box.dataset.slider] = slide(box);
  for (const box of document.querySelectorAll("[data-filter]")) tables.push(choose(box));
  for (const id of Object.keys(spots)) spots[id].moved();

  for (const id of Object.keys(specs)) {
    const spot = document.getElementById(id);
    if (!spot) continue;
    /* A chart has no width inside closed details or in a hidden frame: it is drawn once it has one. */
    new ResizeObserver(function (seen, observer) {
      if (!spot.clientWidth) return;
      observer.disconnect();
      draw(id, spot);
    }).observe(spot);
  }

  function draw(id, spot) {
    window
      .vegaEmbed(spot, specs[id], { mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false })
      .then(function (result) {
        spot.classList.add("drawn");
        if (spots[id]) spots[id].drawn(result.view);
      })
      .catch(function (error) {
        spot.textContent = "This chart could not be drawn (" + error.message + "); its numbers are in the table below.";
      });
  }

  /* The slider under a chart: its numbers, its place in the picture, and what it refuses. */
  function slide(box) {
    const id = box.dataset.slider;
    const about = specs[id].usermeta.slider;
    const input = box.querySelector("input");
    const output = box.querySelector("output");
    const rows = Array.from(box.querySelector("tbody").rows);
    let view = null;

    /* The point of a line that lies nearest to x. */
    function nearest(points, x) {
      return points.reduce(function (best, point) {
        return Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best;
      });
    }

    function moved() {
      const [x, told] = about.stops[Number(input.value)];
      const said = [told];
      const picked = [];
      cuts[id] = {};
      about.lines.forEach(function (line, i) {
        const [at, y, text, refused, cut] = nearest(line.points, x);
        rows[i].querySelector("[data-value]").textContent = text;
        const cell = rows[i].querySelector("[data-refused]");
        if (cell) cell.textContent = refused;
        if (cut !== null) cuts[id][line.when] = cut;
        said.push(line.when + " the repair " + text + (cell ? ", refused " + refused : ""));
        picked.push({ x: at, y: y, when: line.when, series: line.series, line: line.when + " · " + line.series });
      });
      output.textContent = told;
      input.setAttribute("aria-valuetext", said.join("; "));
      for (const table of tables) table.refuse(id);
      if (view) view.data("at", [{ x: x }]).data("picked", picked).runAsync();
    }

    /* The thumb runs below the picture's own axis: a thumb is 16 pixels wide, and its middle shows the place. */
    function align() {
      const frame = document.getElementById(id).querySelector(".background").getBoundingClientRect();
      input.style.marginLeft = "0";
      input.style.marginLeft = frame.left - input.getBoundingClientRect().left - 8 + "px";
      input.style.width = frame.width + 16 + "px";
    }

    input.addEventListener("input", moved);
    for (const button of box.querySelectorAll("[data-show]")) {
      button.addEventListener("click", function () {
        const chip = document.getElementById(button.dataset.show);
        for (const table of tables) table.only(chip);
      });
    }
    box.hidden = false;
    return {
      moved: moved,
      drawn: function (made) {
        view = made;
        moved();
        align();
        new ResizeObserver(align).observe(document.getElementById(id));
      },
    };
  }

  /* The example table: search, choose by property, sort. */
  function choose(box) {
    const input = box.querySelector("input");
    const count = box.querySelector("output");
    const table = document.getElementById(box.dataset.filter);
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    const texts = rows.map(function (row) { return row.textContent.toLowerCase(); });
    const inside = rows.map(function (row) { return row.dataset.inside.split(" "); });
    const chips = Array.from(box.querySelectorAll("button"));
    const heads = Array.from(table.tHead.rows[0].cells);
    let sorted = { column: -1, down: false };

    function number(row, column) {
      const exact = row.cells[column].dataset.exact;
      return exact === undefined ? null : Number(exact);
    }

    function holds(chip, i) {
      if (chip.dataset.inside !== undefined) return inside[i].includes(chip.dataset.inside);
      const cut = cuts[chip.dataset.cut][chip.dataset.when];
      const value = number(rows[i], Number(chip.dataset.column));
      return cut !== undefined && value !== null && value < cut;
    }

    function apply() {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const pressed = chips.filter(function (chip) { return chip.getAttribute("aria-pressed") === "true"; });
      let shown = 0;
      rows.forEach(function (row, i) {
        const named = words.every(function (word) { return texts[i].includes(word); });
        row.hidden = !(named && pressed.every(function (chip) { return holds(chip, i); }));
        if (!row.hidden) shown += 1;
      });
      /* On paper there are ten examples. */
      Array.from(body.rows).filter(function (row) { return !row.hidden; }).forEach(function (row, i) {
        row.classList.toggle("spare", i >= 10);
      });
      const order = sorted.column < 0 ? "" : ", sorted by " + heads[sorted.column].textContent;
      count.textContent = shown + " of " + rows.length + " shown" + order;
    }

    function sort(column, down) {
      sorted = { column: column, down: down };
      const order = rows.slice();
      if (column >= 0) {
        order.sort(function (a, b) {
          const x = number(a, column), y = number(b, column);
          const less = x !== null && y !== null ? x - y
            : a.cells[column].textContent.localeCompare(b.cells[column].textContent, undefined, { numeric: true });
          return down ? -less : less;
        });
      }
      heads.forEach(function (head, i) {
        if (i === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      body.append(...order);
      apply();
    }

    /* A head is clicked through: largest or first letter, the other way, and as the audit chose. */
    heads.forEach(function (head, i) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      const first = head.classList.contains("num");
      button.addEventListener("click", function () {
        if (sorted.column !== i) sort(i, first);
        else if (sorted.down === first) sort(i, !first);
        else sort(-1, false);
      });
    });

    function press(chip, on) {
      chip.setAttribute("aria-pressed", String(on));
      if (on && chip.dataset.order) sort(Number(chip.dataset.order), true);
      else apply();
    }

    for (const chip of chips) {
      chip.addEventListener("click", function () { press(chip, chip.getAttribute("aria-pressed") !== "true"); });
    }
    input.addEventListener("input", apply);
    box.hidden = false;
    apply();
    return {
      /* The slider of the chart `id` moved. */
      refuse: function (id) {
        const mine = chips.filter(function (chip) { return chip.dataset.cut === id; });
        for (const chip of mine) {
          chip.querySelector(".count").textContent = rows.filter(function (_, i) { return holds(chip, i); }).length;
        }
        if (mine.length) apply();
      },
      /* Shows what `chip` stands for and nothing else chosen, if it is one of this table. */
      only: function (chip) {
        if (!chips.includes(chip)) return;
        for (const other of chips) other.setAttribute("aria-pressed", "false");
        input.value = "";
        press(chip, true);
        chip.focus();
      },
    };
  }

  for (const box of document.querySelectorAll(".copy")) {
    const button = document.createElement("button");
    const code = box.querySelector("code");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", function () {
      /* A page from disk has no clipboard of the newer kind everywhere. */
      window.getSelection().selectAllChildren(code);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
    });
    box.append(button);
  }
})();
