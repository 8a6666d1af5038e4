// Sort a table by the column whose head was pressed: figures by their value, texts as a reader would; empty cells last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const place = head.cellIndex, down = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    const order = head.classList.contains("n") || head.getAttribute("aria-sort") ? down : 1;
    const key = (row) => row.cells[place].dataset.key ?? row.cells[place].textContent;
    const figures = head.classList.contains("n"), words = new Intl.Collator(undefined, { numeric: true });
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => (a === "") - (b === "") || order * (figures ? a - b : words.compare(a, b)));
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order === 1 ? "ascending" : "descending");
    body.append(...rows.map(([, row]) => row));
  });
}
// Paper has no clicks.
let opened = [];
addEventListener("beforeprint", () => { opened = [...document.querySelectorAll("details:not([open])")]; for (const one of opened) one.open = true; });
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
