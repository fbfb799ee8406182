/** Dark, light, or as the system is. */

import { byId, mark, say } from "./dom.js";

const THEMES = ["system", "light", "dark"];

export function theme() {
  const button = byId("theme");
  let chosen = localStorage.getItem("theme");
  if (!THEMES.includes(chosen)) chosen = THEMES[0];

  function show() {
    mark(document.documentElement, "data-theme", chosen === "system" ? null : chosen);
    say(button, `Theme: ${chosen}`);
  }

  button.addEventListener("click", () => {
    chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
    localStorage.setItem("theme", chosen);
    show();
  });
  show();
}
