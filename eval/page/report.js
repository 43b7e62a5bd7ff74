"use strict";
(function () {
  function all(selector, inside) { return Array.prototype.slice.call((inside || document).querySelectorAll(selector)); }
  // --- tables: the heads of columns become buttons that sort by them
  function key(row, column, isNumber) {
    var cell = row.cells[column];
    var text = "key" in cell.dataset ? cell.dataset.key : cell.textContent;
    return isNumber ? parseFloat(text) : text.trim().toLowerCase();
  }
  function sortBy(table, head) {
    var isNumber = head.dataset.sort === "number";
    var column = head.cellIndex;
    var down = head.getAttribute("aria-sort") === "ascending";
    var body = table.tBodies[0];
    var rows = Array.prototype.slice.call(body.rows).map(function (row, i) {
      return { row: row, key: key(row, column, isNumber), place: i };
    });
    rows.sort(function (a, b) {
      var order = a.key < b.key ? -1 : a.key > b.key ? 1 : 0;
      return (down ? -order : order) || a.place - b.place;
    });
    rows.forEach(function (each) { body.appendChild(each.row); });
    all("th[aria-sort]", table.tHead).forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  }
  all("table.sortable").forEach(function (table) {
    if (table.tBodies[0].rows.length < 2) return;
    table.classList.add("sorts");
    all("th[data-sort]", table.tHead).forEach(function (head) {
      var button = document.createElement("button");
      var name = head.querySelector(".name") || head;
      button.type = "button";
      button.textContent = name.textContent;
      button.addEventListener("click", function () { sortBy(table, head); });
      name.textContent = "";
      name.appendChild(button);
    });
  });
  // --- answers side by side: filters, order, and the measure by which "worse" is meant
  var form = document.getElementById("filters");
  var front = document.getElementById("samples");
  var rest = document.getElementById("more-samples");
  if (!form || !front) return;
  var count = document.getElementById("filter-count");
  var shownAtFirst = front.children.length;
  var samples = all("article.sample").map(function (article, i) {
    var changes = {};
    all(".change", article).forEach(function (change) { changes[change.dataset.by] = change; });
    return { article: article, place: i, text: article.textContent.toLowerCase(), changes: changes,
      growth: parseFloat(article.dataset.growth), group: article.dataset.group || "",
      prompt: article.dataset.id + " " + article.dataset.sample.padStart(6, "0") };
  });
  function value(name, otherwise) { return form.elements[name] ? form.elements[name].value : otherwise; }
  function amount(sample, by) {
    var text = sample.changes[by].dataset.amount;
    return text === "" ? null : parseFloat(text);
  }
  function compare(order, by) {
    return function (a, b) {
      if (order === "growth") return b.growth - a.growth || a.place - b.place;
      if (order === "prompt") return a.prompt < b.prompt ? -1 : a.prompt > b.prompt ? 1 : 0;
      var x = amount(a, by), y = amount(b, by);
      if (x === null || y === null) return (x === null) - (y === null) || a.place - b.place;
      return (order === "better" ? y - x : x - y) || a.place - b.place;
    };
  }
  function apply() {
    var kind = value("kind"), by = value("by", ""), order = value("order"), group = value("group", "");
    var wanted = value("words").trim().toLowerCase();
    var shown = 0;
    samples.slice().sort(compare(order, by)).forEach(function (sample) {
      var fits = (kind === "all" || (kind === "cut" ? "cut" in sample.article.dataset : sample.changes[by].dataset.kind === kind)) &&
        (!group || sample.group === group) && (!wanted || sample.text.indexOf(wanted) >= 0);
      sample.article.hidden = !fits;
      Object.keys(sample.changes).forEach(function (name) { sample.changes[name].hidden = name !== by; });
      if (fits) {
        shown += 1;
        sample.article.querySelector(".rank").textContent = shown;
      }
      (!rest || fits && shown <= shownAtFirst ? front : rest).appendChild(sample.article);
    });
    if (rest) {
      rest.hidden = shown <= shownAtFirst;
      rest.querySelector("summary").textContent = "The other " + (shown - shownAtFirst) + " answers";
    }
    count.textContent = shown + " of " + samples.length + " answers match" +
      (shown ? ", first those that fit “" + form.elements.order.selectedOptions[0].textContent + "”" : "");
  }
  form.hidden = false;
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.addEventListener("input", apply);
}());
