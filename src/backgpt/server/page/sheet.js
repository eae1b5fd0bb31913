/** A sheet of paper with one text on it, whose words can be chosen. */

import { make } from "./dom.js";
import { LeftwardText } from "./leftward.js";
import { rove, stopAt } from "./roving.js";

/** @typedef {import("./leftward.js").Placed} Placed */

export class Sheet {
  /**
   * @param {string} label
   * @param {(placed: Placed, word: HTMLElement) => void} choose what choosing a word does
   */
  constructor(label, choose) {
    const about = "The arrow keys go from word to word, Enter opens what a word offers.";
    this.lines = make("div", { class: "lines", role: "group", "aria-label": `${label}. ${about}` });
    this.foot = make("p", { class: "foot" });
    this.element = make("article", { class: "sheet", "aria-label": label }, this.lines, this.foot);
    this.written = new LeftwardText(this.lines, () => this.offerFirstWord());
    rove(
      this.lines,
      () => this.written.rows.map((row) => row.map(elementOf)),
      (word) => {
        const placed = this.written.words.find((one) => elementOf(one) === word);
        if (placed && !this.isGrowing) choose(placed, word);
      },
    );
    this.lines.addEventListener("copy", (event) => copyExactly(event, this.lines));
  }

  /** The text on the sheet. */
  get text() {
    return this.written.text;
  }

  /** Whether words are still coming: then there is a caret, and no word can be chosen. */
  get isGrowing() {
    return this.element.classList.contains("growing");
  }

  set isGrowing(growing) {
    this.element.classList.toggle("growing", growing);
    if (!growing) this.offerFirstWord();
  }

  /** Scroll as far as it takes to see the topmost line. */
  showTop() {
    this.lines.querySelector(".line")?.scrollIntoView({ block: "nearest" });
  }

  /** Put the first word into the tab order. */
  offerFirstWord() {
    const [first] = this.written.words;
    if (first && !this.isGrowing) stopAt(this.lines, elementOf(first), true);
  }
}

/**
 * Copy the selected text as it is, without the breaks of lines on the sheet.
 * @param {ClipboardEvent} event
 * @param {HTMLElement} lines
 */
export function copyExactly(event, lines) {
  const selection = getSelection();
  if (!selection?.rangeCount || !event.clipboardData) return;
  const range = selection.getRangeAt(0);
  if (!lines.contains(range.commonAncestorContainer)) return;
  event.clipboardData.setData("text/plain", range.toString());
  event.preventDefault();
}

/**
 * Copy what is selected of several texts, or beyond one, without the breaks of lines as well.
 * @param {ClipboardEvent} event
 */
export function copyFlowing(event) {
  const typed = event.target instanceof Element && event.target.closest("input, textarea");
  if (event.defaultPrevented || typed || !event.clipboardData) return;
  const { classList } = document.documentElement;
  classList.add("flowing");
  const text = `${getSelection()}`;
  classList.remove("flowing");
  if (!text) return;
  event.clipboardData.setData("text/plain", text);
  event.preventDefault();
}

/**
 * @param {Placed} placed
 * @returns {HTMLElement}
 */
function elementOf({ element }) {
  return /** @type {HTMLElement} */ (element.lastElementChild);
}
