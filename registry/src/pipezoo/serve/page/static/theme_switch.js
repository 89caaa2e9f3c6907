// The button that changes between light and dark. What the system says is not stored, so that the page follows it.

const system = matchMedia("(prefers-color-scheme: dark)");

function current() {
  return document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");
}

function choose(theme) {
  const isSystems = theme === (system.matches ? "dark" : "light");
  if (isSystems) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    if (isSystems) localStorage.removeItem("pipezoo.theme");
    else localStorage.setItem("pipezoo.theme", theme);
  } catch {
    // it holds until the page is left
  }
}

/** Makes a button switch the theme, and say what it does. */
export function bindThemeSwitch(button) {
  const name = () => button.setAttribute("aria-label", current() === "dark" ? "Light colors" : "Dark colors");
  button.addEventListener("click", () => {
    choose(current() === "dark" ? "light" : "dark");
    name();
  });
  system.addEventListener("change", name);
  name();
}
