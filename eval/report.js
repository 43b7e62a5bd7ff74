"use strict";
(function () {
  var form = document.getElementById("filters");
  var rest = document.getElementById("more-samples");
  var samples = Array.prototype.slice.call(document.querySelectorAll("article.sample"));
  if (!form || !samples.length) return;
  var texts = samples.map(function (sample) { return sample.textContent.toLowerCase(); });
  var count = document.getElementById("filter-count");
  function apply() {
    var kind = form.elements.kind.value;
    var wanted = form.elements.words.value.trim().toLowerCase();
    var shown = 0;
    samples.forEach(function (sample, i) {
      var fits = (kind === "all" || (" " + sample.dataset.kind + " ").indexOf(" " + kind + " ") >= 0) &&
        (!wanted || texts[i].indexOf(wanted) >= 0);
      sample.hidden = !fits;
      if (fits) shown += 1;
    });
    if (rest && (wanted || kind !== "all")) rest.open = true;
    count.textContent = shown + " of " + samples.length + " shown";
  }
  form.hidden = false;
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.addEventListener("input", apply);
  window.addEventListener("beforeprint", function () { if (rest && form.elements.kind.value !== "all") rest.open = true; });
}());
