// Keeps the end in view while an answer grows, unless the user has scrolled up to read.

const NEAR = 60; // pixels from the end that still are the end

/** Follows the end of what scrolls. */
export class Scroll {
  constructor(scroller, button) {
    this.scroller = scroller;
    this.button = button;
    this.isAtEnd = true;
    scroller.addEventListener("scroll", () => this.look(), { passive: true });
    button.addEventListener("click", () => {
      this.toEnd();
      this.follow();
    });
  }

  /** Goes to the end with the next change, wherever the user is. */
  toEnd() {
    this.isAtEnd = true;
  }

  /** Goes to the end, where the user was there before the change. */
  follow() {
    if (this.isAtEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.look();
  }

  look() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    this.button.hidden = this.isAtEnd;
  }
}
