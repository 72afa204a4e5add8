// Light, dark, or as the system says. Loaded ahead of the page, so that it never flashes in the other one.
"use strict";

(() => {
  const KEY = "es_service.theme";
  const ORDER = ["auto", "light", "dark"];

  const stored = () => {
    try {
      const value = localStorage.getItem(KEY);
      return ORDER.includes(value) ? value : "auto";
    } catch {
      return "auto"; // storage is switched off: the choice lasts for this page
    }
  };

  let theme = stored();
  const apply = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme}`;
    dispatchEvent(new Event("themechange"));
  };

  apply();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme")?.addEventListener("click", () => {
      theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
      try {
        localStorage.setItem(KEY, theme);
      } catch {
        // not kept, but applied
      }
      apply();
    });
  });
})();
