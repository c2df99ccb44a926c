const tables = document.querySelectorAll("table.sortable");
tables.forEach(table => table.querySelectorAll("th").forEach((th, column) => th.onclick = () => {
  const order = th.dataset.order === "1" ? -1 : 1, body = table.tBodies[0];
  table.querySelectorAll("th").forEach(other => delete other.dataset.order); th.dataset.order = order;
  const key = row => { const v = row.cells[column].dataset.v; return v === "" ? null : isNaN(v) ? v : Number(v); };
  const compare = (a, b) => a === b ? 0 : a === null ? 1 : b === null ? -1 : (a < b ? -1 : 1) * order;
  [...body.rows].sort((a, b) => compare(key(a), key(b))).forEach(row => body.append(row));
}));
