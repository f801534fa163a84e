"use strict";
// The page reads whole without this: it adds sorting, a filter, and opens what a link leads to.
(() => {
  const value = (cell) => {
    const data = cell && cell.querySelector("data");
    if (data) return Number(data.value);
    const text = cell ? cell.textContent.trim() : "";
    return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text.toLowerCase();
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1; // empty cells last
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };

  const sort = (table, column, heading) => {
    const falling = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, key: value(row.cells[column]) }));
    rows.sort((a, b) => {
      const order = compare(a.key, b.key);
      return falling && a.key !== "" && b.key !== "" ? -order : order;
    });
    for (const { row } of rows) {
      row.classList.remove("first");
      row.cells[0].classList.remove("again");
      body.append(row);
    }
    table.classList.add("plain");
  };

  const tables = [...document.querySelectorAll("table.sortable")];
  for (const table of tables) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      if (heading.dataset.sort === "none") return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => sort(table, column, heading));
    });
  }

  const verdicts = document.querySelectorAll("#verdicts table");
  const rows = [...document.querySelectorAll("#verdicts tbody tr")];
  if (rows.length > 1) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    const count = document.createElement("output");
    label.className = "filter";
    input.type = "search";
    input.placeholder = "e.g. cpu faster";
    input.setAttribute("aria-label", "Show only rows that contain all of these words");
    label.append("Filter", input, count);
    verdicts[0].parentElement.before(label);
    const apply = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = words.length ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
    };
    input.addEventListener("input", apply);
    apply();
  }

  const open = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    target.scrollIntoView();
  };
  window.addEventListener("hashchange", open);
  open();
})();
