"use strict";
// Runs before anything is painted, so that a page in the other theme does not flash.
try {
  const chosen = localStorage.getItem("pipezoo.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // a browser that stores nothing has the system's theme
}
