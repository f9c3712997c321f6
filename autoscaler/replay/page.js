document.querySelectorAll("table.sortable").forEach(function (table) {
  table.querySelectorAll("thead tr:last-child th").forEach(function (head, place) {
    head.addEventListener("click", function () {
      var down = head.getAttribute("aria-sort") !== "descending";
      table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      var body = table.tBodies[0];
      var rows = Array.from(body.rows);
      var value = function (row) { return row.cells[place].dataset.value; };
      rows.sort(function (a, b) {
        var one = value(a), other = value(b);
        var order = isNaN(one) || isNaN(other) ? one.localeCompare(other) : one - other;
        return down ? -order : order;
      });
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });
});
