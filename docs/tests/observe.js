// What a reader would trip over on the page that is open: formulas left as source, images without words, a page wider than its window.
(async () => {
  await document.fonts.ready;
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const skipped = "code, pre, script, style, .katex, textarea";
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const formulas = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.nodeValue;
    if (/\$\$|\\\(|\\\[|\$[^\s$][^$]*\$/.test(text) && !walker.currentNode.parentElement.closest(skipped)) formulas.push(text.trim());
  }
  for (const wrong of document.querySelectorAll(".katex-error")) formulas.push(wrong.title || wrong.textContent);
  const named = (image) => image.hasAttribute("alt") ? image.alt.trim() || image.getAttribute("role") === "presentation" : false;
  const drawn = (svg) => svg.getAttribute("role") !== "img" || svg.getAttribute("aria-label") || svg.querySelector("title");
  return {
    formulas,
    title: document.title,
    headings: document.querySelectorAll("article h1").length,
    rendered: document.querySelectorAll(".katex").length,
    ids: [...document.querySelectorAll("[id]")].map((element) => element.id),
    links: [...document.querySelectorAll("a[href]")].map((link) => link.href),
    sources: [...document.querySelectorAll("img, script[src]")].map((element) => element.src),
    broken: [...document.images].filter((image) => image.complete && !image.naturalWidth).map((image) => image.src),
    unnamed: [...[...document.images].filter((image) => !named(image)).map((image) => image.src),
      ...[...document.querySelectorAll("article svg")].filter((svg) => !drawn(svg)).map((svg) => svg.outerHTML.slice(0, 80))],
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
})()
