/**
 * Text that grows at its beginning. Lines are filled from the end of a paragraph, so that what
 * stands there stays where it is: a new word only ever joins the topmost line, or begins one above.
 *
 *                          there was a fox.
 *     He was happy, and they lived happily ever
 *                                        after.
 *
 * The text content of the element is the text, character by character.
 */

import { make } from "./dom.js";
import { units } from "./text.js";

const WIDEST_SPACE = 0.3; // em that a full line's spaces may gain, so that it reaches the margin

/**
 * A word on the sheet. `fromEnd` is how far its first letter is from the end of the text: it stays
 * as it is while the text grows.
 * @typedef {{gap: string, word: string, fromEnd: number, element: HTMLElement}} Placed
 * @typedef {{element: HTMLElement, words: Placed[]}} Line
 * @typedef {{element: HTMLElement, lines: Line[]}} Paragraph
 */

export class LeftwardText {
  /**
   * @param {HTMLElement} root an element whose width is the width of the lines
   * @param {() => void} [changed] called when all words have been placed anew
   */
  constructor(root, changed = () => {}) {
    this.root = root;
    this.text = "";
    /** How many characters at the end were given. */
    this.given = 0;
    /** @type {Paragraph[]} */
    this.paragraphs = [];
    this.changed = changed;
    this.width = 0;
    this.ruler = ruler(root);
    new ResizeObserver(() => {
      const { clientWidth } = root; // 0 while it is not shown
      if (clientWidth && Math.abs(clientWidth - this.width) >= 1) this.placeAnew();
    }).observe(root);
  }

  /**
   * Show a text.
   * @param {string} text
   * @param {number} [given] how many characters at its end were given
   */
  set(text, given = 0) {
    this.given = given;
    this.text = "";
    this.paragraphs = [];
    this.root.replaceChildren();
    this.width = this.root.clientWidth;
    this.openParagraph();
    this.grow(text, false);
    this.changed();
  }

  /** Place all words for another width; the one that has the focus keeps it. */
  placeAnew() {
    const { activeElement } = document;
    const focused = this.words.find(({ element }) => element.contains(activeElement));
    this.set(this.text, this.given);
    const again = focused && this.words.find(({ fromEnd }) => fromEnd === focused.fromEnd);
    const word = /** @type {HTMLElement | undefined} */ (again?.element.lastElementChild);
    if (!word) return;
    word.tabIndex = -1;
    word.focus({ preventScroll: true });
  }

  /**
   * Put a piece in front of the text.
   * @param {string} piece
   */
  prepend(piece) {
    this.grow(piece, true);
  }

  /** All words in reading order. */
  get words() {
    const lines = this.paragraphs.flatMap((paragraph) => paragraph.lines);
    return lines.flatMap((line) => line.words.filter((placed) => placed.word));
  }

  /** The words of each line that has any, from the topmost down. */
  get rows() {
    const lines = this.paragraphs.flatMap((paragraph) => paragraph.lines);
    return lines
      .map((line) => line.words.filter((placed) => placed.word))
      .filter((row) => row.length);
  }

  /**
   * @param {string} piece
   * @param {boolean} fresh whether the words should be seen to arrive
   */
  grow(piece, fresh) {
    if (!piece) return;
    const [first] = this.paragraphs[0].lines[0].words;
    let fromEnd = first ? first.fromEnd - first.word.length : this.text.length;
    this.ruler = ruler(this.root);
    const parts = (piece + (first ? first.gap + first.word : "")).split("\n");
    this.text = piece + this.text;
    fromEnd = this.fill(parts.pop() ?? "", fromEnd, fresh, first);
    while (parts.length) {
      this.openParagraph();
      fromEnd = this.fill(parts.pop() ?? "", fromEnd + 1, fresh);
    }
  }

  /**
   * Put a part without line breaks in front of the first paragraph; `first` is the word there, which
   * the part ends with, perhaps with letters before it.
   * @param {string} part
   * @param {number} fromEnd
   * @param {boolean} fresh
   * @param {Placed} [first]
   * @returns {number} how far the beginning of the part is from the end of the text
   */
  fill(part, fromEnd, fresh, first) {
    const line = this.paragraphs[0].lines[0];
    const found = units(part);
    while (found.length) {
      const { gap, word } = /** @type {import("./text.js").Unit} */ (found.pop());
      fromEnd += word.length;
      if (first) {
        Object.assign(first, { gap, word, fromEnd });
        show(first);
        first = undefined;
      } else {
        const element = make("span", { class: "unit" });
        element.append(make("span", { class: "gap" }), make("span", { class: "word" }));
        const placed = { gap, word, fromEnd, element };
        show(placed);
        element.lastElementChild?.classList.toggle("fresh", fresh);
        line.words.unshift(placed);
        line.element.prepend(element);
      }
      const written = /** @type {HTMLElement} */ (line.words[0].element.lastElementChild);
      written.classList.toggle("given", fromEnd <= this.given);
      fromEnd += gap.length;
    }
    this.breakTopLine();
    // Only now, because from here on the browser looks through all of it at each change.
    this.paragraphs[0].element.dir ||= "auto";
    return fromEnd;
  }

  openParagraph() {
    this.paragraphs[0]?.element.prepend(make("span", { class: "break" }, "\n"));
    const line = { element: make("div", { class: "line" }), words: [] };
    const paragraph = make("div", { class: "paragraph" }, line.element);
    this.root.prepend(paragraph);
    this.paragraphs.unshift({ element: paragraph, lines: [line] });
  }

  /**
   * Move the words that no longer fit the topmost line to new lines above it, each of them once,
   * so that a long text takes no longer than its length.
   */
  breakTopLine() {
    const { lines } = this.paragraphs[0];
    let [line] = lines;
    const { words } = line;
    for (let end = words.length; ;) {
      const { from, width } = this.lastLine(words, end);
      line.words = words.slice(from, end);
      line.element.classList.toggle("long", this.width > 0 && width > this.width);
      if (end < words.length) line.element.append(...line.words.map(({ element }) => element));
      if (from === 0) return;
      this.fillOut(line, this.width - width);
      const above = { element: make("div", { class: "line" }), words: [] };
      line.element.before(above.element);
      lines.unshift(above);
      line = above;
      end = from;
    }
  }

  /**
   * Return where the last line of the words before `end` begins, and how wide it is.
   * @param {Placed[]} words
   * @param {number} end
   */
  lastLine(words, end) {
    const { measure } = this.ruler;
    let width = 0;
    let from = end;
    while (from > 0) {
      const space = from < end ? measure(words[from].gap) : 0;
      const wider = width + space + measure(words[from - 1].word);
      if (this.width && wider > this.width && from < end) break;
      width = wider;
      from -= 1;
    }
    return { from, width };
  }

  /**
   * Widen the spaces of a full line.
   * @param {Line} line
   * @param {number} spare pixels that are left
   */
  fillOut(line, spare) {
    const spaces = line.words.slice(1).reduce((sum, { gap }) => sum + gap.length, 0);
    const most = WIDEST_SPACE * this.ruler.size;
    const wider = this.ruler.wordSpacing + Math.min(spare / spaces, most);
    if (spaces) line.element.style.wordSpacing = `${wider}px`;
  }
}

/** @param {Placed} placed */
function show({ gap, word, element }) {
  const [before, written] = element.children;
  before.textContent = gap;
  written.textContent = word;
}

const canvas = document.createElement("canvas").getContext("2d");
/** @type {Map<string, number>} */
const widths = new Map();

/**
 * Return the size of an element's font and a function that measures text in it, in pixels.
 * @param {HTMLElement} element
 */
function ruler(element) {
  const style = getComputedStyle(element);
  const { fontStyle, fontWeight, fontSize, fontFamily } = style;
  const font = `${fontStyle} ${fontWeight} ${fontSize} ${fontFamily}`;
  const letterSpacing = `${pixels(style.letterSpacing)}px`;
  const wordSpacing = `${pixels(style.wordSpacing)}px`;
  const look = [font, letterSpacing, wordSpacing, ""].join(" ");
  /** @type {(text: string) => number} */
  const measure = (text) => {
    const known = widths.get(look + text);
    if (known !== undefined || !canvas) return known ?? 0;
    Object.assign(canvas, { font, letterSpacing, wordSpacing });
    // A tab is measured as a space, and drawn as up to half of one more.
    const tabs = text.split("\t").length - 1;
    const width = canvas.measureText(text).width + (tabs && (tabs * measure(" ")) / 2);
    widths.set(look + text, width);
    return width;
  };
  return { measure, size: pixels(fontSize), wordSpacing: pixels(wordSpacing) };
}

/**
 * Return a computed length; "normal" is none.
 * @param {string} length
 */
function pixels(length) {
  return Number.parseFloat(length) || 0;
}
