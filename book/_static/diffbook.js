/* Boxes that scroll sideways can be reached by keyboard and show their edge. */
(() => {
  const boxes = ".bd-article pre, .bd-article div.math, .bd-article mjx-container, " +
    ".bd-article table, .bd-article .diffbook-scroll";
  const mark = () => document.querySelectorAll(boxes).forEach(box => {
    const style = getComputedStyle(box).overflowX;
    const scrolls = box.scrollWidth > box.clientWidth + 1 && (style === "auto" || style === "scroll");
    box.classList.toggle("diffbook-scrolls", scrolls);
    if (scrolls) box.tabIndex = 0;
  });
  // Sphinx calls the bibliography a list, but its entries no items of one.
  const unlist = () => document.querySelectorAll('.citation-list[role="list"]').forEach(
    list => list.removeAttribute("role"));
  const start = async () => {
    unlist();
    await window.MathJax?.startup?.promise;
    mark();
    let waiting = 0;
    new ResizeObserver(() => { clearTimeout(waiting); waiting = setTimeout(mark, 100); })
      .observe(document.body);
    document.addEventListener("toggle", mark, true);
  };
  window.addEventListener("load", start);
})();
