// Sorting and filtering of long tables. The page says everything without it.
document.querySelectorAll("table").forEach(function (table) {
  var body = table.tBodies[0], heads = Array.from(table.tHead.rows[0].cells);
  function key(row, column) {
    var cell = row.cells[column];
    if (!cell.classList.contains("number")) return cell.textContent;
    // Without a figure, it comes last or first.
    return "value" in cell.dataset ? Number(cell.dataset.value) : Infinity;
  }
  function sort(column) {
    var up = heads[column].getAttribute("aria-sort") !== "ascending";
    heads.forEach(function (head) { head.removeAttribute("aria-sort"); });
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    Array.from(body.rows).sort(function (one, other) {
      var a = key(one, column), b = key(other, column);
      return (a > b ? 1 : b > a ? -1 : 0) * (up ? 1 : -1);
    }).forEach(function (row) { body.appendChild(row); });
  }
  if (body.rows.length > 3) heads.forEach(function (head, column) {
    head.classList.add("sortable");
    head.title = "sort";
    head.addEventListener("click", function () { sort(column); });
  });
  if (body.rows.length > 60) {
    var input = document.createElement("input");
    input.className = "filter";
    input.placeholder = "only rows with all of these words";
    input.addEventListener("input", function () {
      var words = input.value.toLowerCase().split(/\s+/);
      Array.from(body.rows).forEach(function (row) {
        var text = Array.from(row.cells).map(function (cell) { return cell.textContent; }).join(" ").toLowerCase();
        row.hidden = !words.every(function (word) { return text.includes(word); });
      });
    });
    table.parentNode.before(input);
  }
});
