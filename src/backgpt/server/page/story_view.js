/** The desk: the sheets of a story, the field for its ending, and which buttons are there. */

import { button, byId, make } from "./dom.js";
import { LeftwardText } from "./leftward.js";
import { readOf, toldOf } from "./record.js";
import { Sheet } from "./sheet.js";

/**
 * @typedef {import("./record.js").Story} Story
 * @typedef {import("./leftward.js").Placed} Placed
 * @typedef {object} Actions
 * @property {(index: number, placed: Placed, word: HTMLElement) => void} chooseWord
 * @property {(index: number) => void} keep
 */

export class StoryView {
  /** @param {Actions} actions */
  constructor(actions) {
    this.actions = actions;
    /** @type {Sheet[]} */
    this.sheets = [];
    this.isEditing = false;
    /** Whether it was seen that words can be pressed, so that nobody needs to be told. */
    this.knowsWords = false;
    this.field = /** @type {HTMLTextAreaElement} */ (byId("ending"));
    this.above = new LeftwardText(byId("above"));
    this.field.addEventListener("input", () => this.fitField());
  }

  /** What stands in the field for the ending. */
  get ending() {
    return this.field.value;
  }

  set ending(text) {
    this.field.value = text;
    this.fitField();
  }

  /**
   * Show a story.
   * @param {Story} story
   * @param {{canUndo: boolean, canRedo: boolean}} travel
   */
  render({ ending, drafts }, { canUndo, canRedo }) {
    if (!drafts.length) this.isEditing = true;
    const single = drafts.length === 1;
    byId("editor").hidden = !this.isEditing;
    if (this.isEditing) {
      this.place(0);
      if (this.field.value !== ending) this.field.value = ending;
      this.above.set(single ? drafts[0].written : "");
      this.fitField();
    } else {
      this.place(drafts.length);
      drafts.forEach((draft, index) => {
        this.show(index, draft.written + ending, ending);
        if (!single) this.describe(index, toldOf(ending, draft).join(" · "));
      });
    }
    byId("tip").hidden = this.isEditing || this.knowsWords;
    byId("edit").hidden = !drafts.length;
    byId("edit").textContent = this.isEditing ? "Done" : "Edit the ending";
    byId("go-on").hidden = this.isEditing || !single || drafts[0].finish === "stop";
    byId("outputs").hidden = this.isEditing || !single;
    byId("write").textContent = this.isEditing ? "Write" : "Write again";
    this.offer("undo", canUndo);
    this.offer("redo", canRedo);
  }

  /**
   * Clear the desk for beginnings in front of a text.
   * @param {string} text
   * @param {string} ending
   * @param {import("./settings.js").Completion} body what is asked for
   */
  startWriting(text, ending, body) {
    this.isEditing = false;
    byId("editor").hidden = true;
    this.place(body.n);
    this.sheets.forEach((sheet, index) => {
      this.show(index, text, ending);
      sheet.isGrowing = true;
    });
    this.sheets[0].showTop();
    for (const id of ["write", "edit", "go-on", "outputs", "tip"]) byId(id).hidden = true;
    for (const id of ["undo", "redo"]) this.offer(id, false);
    byId("status").textContent = ["writing", readOf(ending, body)].filter(Boolean).join(" · ");
    byId("stop").hidden = false;
    byId("stop").focus({ preventScroll: true });
  }

  /**
   * @param {number} index
   * @param {string} piece
   */
  prepend(index, piece) {
    this.sheets[index].written.prepend(piece);
  }

  endWriting() {
    const hadFocus =
      document.activeElement === byId("stop") || document.activeElement === document.body;
    byId("stop").hidden = true;
    byId("write").hidden = false;
    if (hadFocus) byId("write").focus({ preventScroll: true });
  }

  /**
   * Have so many sheets on the desk.
   * @param {number} count
   */
  place(count) {
    while (this.sheets.length > count) this.sheets.pop()?.element.remove();
    while (this.sheets.length < count) {
      const index = this.sheets.length;
      const sheet = new Sheet(`Beginning ${index + 1}`, (placed, word) =>
        this.actions.chooseWord(index, placed, word),
      );
      this.sheets.push(sheet);
      byId("desk").append(sheet.element);
    }
    byId("desk").dataset.sheets = `${Math.max(count, 1)}`;
  }

  /**
   * Show a text on a sheet; where it stands already, no word moves.
   * @param {number} index
   * @param {string} text
   * @param {string} ending
   */
  show(index, text, ending) {
    const sheet = this.sheets[index];
    sheet.isGrowing = false;
    if (sheet.text !== text || sheet.written.given !== ending.length) {
      sheet.written.set(text, ending.length);
    }
    sheet.foot.replaceChildren();
  }

  /**
   * Say below one of several beginnings what it is, and offer to keep it.
   * @param {number} index
   * @param {string} about
   */
  describe(index, about) {
    const keep = button("Keep this one", () => this.actions.keep(index));
    this.sheets[index].foot.replaceChildren(make("span", {}, about), keep);
  }

  /**
   * @param {string} id
   * @param {boolean} possible
   */
  offer(id, possible) {
    const offered = /** @type {HTMLButtonElement} */ (byId(id));
    if (!possible && offered === document.activeElement) byId("write").focus();
    offered.disabled = !possible;
  }

  /** Make the field as high as what is typed, where the browser does not do so. */
  fitField() {
    if (CSS.supports("field-sizing", "content")) return;
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }
}
