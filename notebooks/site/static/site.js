// What the theme leaves without a name, or with another than the one that is seen, for those who hear the pages.
document.addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll(".search-button-field")) button.removeAttribute("aria-label");
  for (const fold of document.querySelectorAll("nav summary")) {
    fold.setAttribute("aria-label", "Pages of " + fold.closest("li").querySelector("a").textContent.trim());
  }
});
