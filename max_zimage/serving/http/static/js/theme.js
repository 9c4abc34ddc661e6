// Not a module: it runs before anything is shown, so that the page does not flash in other colours.
(() => {
  let saved = null;
  try {
    saved = localStorage.getItem("theme");
  } catch {
    // Storage may be off: then the system decides.
  }
  if (saved === "light" || saved === "dark") document.documentElement.dataset.theme = saved;
})();
