/** The story: an ending, the beginnings written for it, and what is done with them. */

import { request } from "./api.js";
import { announce, byId, showProblem } from "./dom.js";
import { keep } from "./draft.js";
import { History } from "./history.js";
import { changedByHand, isEmpty, NOTHING, readOf, statusOf, textOf, toldOf } from "./record.js";
import { prepareOutputs } from "./save.js";
import { Settings, UNHEEDED } from "./settings.js";
import { StoryView } from "./story_view.js";
import { fromFirstWord } from "./text.js";
import { openWordMenu } from "./word_menu.js";
import { write } from "./writing.js";

const MOST_KEPT = 1_000_000; // characters of undo steps that survive a reload
const WITH_ITS_OWN_UNDO = "textarea, input:not([type=radio], [type=range]), [popover], dialog";

/**
 * @typedef {import("./record.js").Draft} Draft
 * @typedef {import("./record.js").Story} Story
 * @typedef {import("./record.js").Step} Step
 * @typedef {{ending: string, written: string, steps: Step[]}} Base what stays of a text
 */

export class StoryDesk {
  constructor() {
    this.settings = new Settings(/** @type {HTMLFormElement} */ (byId("settings")));
    this.view = new StoryView({
      chooseWord: (index, placed, word) => this.openMenu(index, placed, word),
      keep: (index) => this.keep(index),
    });
    const kept = keep("backgpt.desk", () => ({
      history: this.historyToKeep().nearest(MOST_KEPT),
      typed: this.view.isEditing ? this.view.ending : null,
      knowsWords: this.view.knowsWords,
    }));
    const typed = kept ? kept.typed : this.view.ending;
    const first = { past: [], current: { ending: typed, drafts: [] }, future: [] };
    /** @type {History<Story>} */
    this.history = new History(kept?.history ?? first);
    this.view.knowsWords = kept?.knowsWords ?? false;
    /** @type {AbortController | null} */
    this.writing = null;
    /** @type {{body: import("./settings.js").Completion, base: Base} | null} */
    this.unfinished = null;
    this.listen();
    this.view.isEditing = typed !== null;
    this.render();
    if (typed !== null) this.view.ending = typed;
  }

  /** @returns {Story} */
  get story() {
    return this.history.current;
  }

  /** @param {import("./models.js").Model[]} models */
  offer(models) {
    this.settings.offer(models);
  }

  listen() {
    const on = (/** @type {string} */ id, /** @type {() => void} */ action) =>
      byId(id).addEventListener("click", action);
    on("write", () => this.write());
    on("stop", () => this.writing?.abort());
    on("go-on", () => this.goOn());
    on("edit", () => (this.view.isEditing ? this.stopEditing() : this.edit()));
    on("undo", () => this.travel("undo"));
    on("redo", () => this.travel("redo"));
    prepareOutputs(() => this.story);
    byId("story").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.write();
      if (event.key !== "Escape" || event.target !== byId("ending")) return;
      this.stopEditing();
    });
    document.addEventListener("keydown", (event) => this.undoByKey(event));
  }

  /** Write everything before the ending. */
  write() {
    if (this.writing) return;
    this.finishEditing();
    const { ending } = this.story;
    const { opening, words, length } = this.settings.hints;
    if (!ending.trim() && (opening || (!words && !length))) {
      showProblem(
        opening
          ? "An opening needs an ending: type one, or empty the field Opening."
          : "Type an ending first: the story is written toward it.",
      );
      this.edit();
      return;
    }
    this.run(ending, { ending, written: "", steps: [] });
  }

  /** Go on writing in front of a text that has not reached its beginning. */
  goOn() {
    const [draft] = this.story.drafts;
    const base = { ending: this.story.ending, written: draft.written, steps: draft.steps };
    this.run(textOf(this.story, draft), base);
  }

  /**
   * Write everything before the rest of a text; `base` is what stays. A text that begins
   * `inOpening` gets no opening in front.
   * @param {string} rest
   * @param {Base} base
   * @param {{inOpening?: boolean}} [where]
   */
  async run(rest, base, { inOpening = false } = {}) {
    showProblem("");
    let body;
    let unheeded;
    try {
      ({ body, unheeded } = this.settings.before(rest, { inOpening }));
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      showProblem(error.message);
      return;
    }
    this.writing = new AbortController();
    this.unfinished = { body, base };
    this.view.startWriting(base.written + base.ending, base.ending, body);
    announce(byId("status").textContent);
    /** @type {Awaited<ReturnType<typeof write>>} */
    let end = { beginnings: [], problem: "This page failed on what the server sent: try again." };
    try {
      end = await write(body, {
        show: (index, piece) => this.view.prepend(index, piece),
        pace: () => this.settings.pace,
        signal: this.writing.signal,
      });
    } finally {
      this.writing = null;
      this.unfinished = null;
      this.endWriting(body, base, end);
      const nothing = end.beginnings.length > 0 && end.beginnings.every(isEmpty);
      showProblem(end.problem || (nothing ? NOTHING : unheeded ? UNHEEDED : ""));
    }
  }

  /** The history, with what is being written as if it were stopped now: the page may go. */
  historyToKeep() {
    if (!this.unfinished) return this.history;
    const { body, base } = this.unfinished;
    const drafts = this.view.sheets.map(({ text }, choice) => ({
      written: text.slice(0, text.length - base.ending.length),
      finish: /** @type {const} */ ("stopped"),
      obeyed: null,
      steps: [...base.steps, { ...body, choice }],
    }));
    const kept = new History(this.history);
    if (drafts.some(({ written }) => written)) kept.push({ ending: base.ending, drafts });
    return kept;
  }

  /**
   * Take over what came.
   * @param {import("./settings.js").Completion} body
   * @param {Base} base
   * @param {{beginnings: import("./writing.js").Beginning[]}} end
   */
  endWriting(body, base, { beginnings }) {
    const drafts = beginnings.map((beginning, choice) => ({
      ...beginning,
      written: beginning.written + base.written,
      steps: [...base.steps, { ...body, choice }],
    }));
    const came = beginnings.some(({ written, finish }) => written || finish === "stop");
    if (came) this.history.push({ ending: base.ending, drafts });
    this.render();
    this.view.endWriting();
    const told = drafts.map((draft) => toldOf(base.ending, draft).join(", ")).join(" and ");
    const read = readOf(base.ending, body);
    announce(came ? ["done", told, read].filter(Boolean).join(", ") : "");
  }

  /**
   * @param {number} index
   * @param {import("./leftward.js").Placed} placed
   * @param {HTMLElement} anchor
   */
  openMenu(index, placed, anchor) {
    const draft = this.story.drafts[index];
    const text = textOf(this.story, draft);
    const start = text.length - placed.fromEnd;
    const after = text.slice(start + placed.word.length);
    const { opening = "" } = this.settings.hints;
    const inOpening = start < opening.length && text.startsWith(opening);
    const writeBefore = (/** @type {string} */ rest) =>
      this.run(rest, { ...this.split(rest), steps: draft.steps }, { inOpening });
    this.view.knowsWords = true;
    openWordMenu({
      anchor,
      word: placed.word,
      load: async (signal) =>
        (await request("v1/alternatives", this.settings.wordsBefore(after), signal)).data,
      rewrite: () => writeBefore(text.slice(start)),
      take: (alternative) => {
        if (alternative.edge) this.beginWith(fromFirstWord(after), draft);
        else writeBefore(fromFirstWord(alternative.text) + after);
      },
    });
  }

  /**
   * Let the text begin here.
   * @param {string} rest
   * @param {Draft} draft
   */
  beginWith(rest, draft) {
    const { ending, written } = this.split(rest);
    const how = "what stood before was taken away";
    const changed = changedByHand({ ...draft, finish: "stop" }, { how, written, ending });
    this.history.push({ ending, drafts: [changed] });
    this.render();
  }

  /**
   * Tell the ending from what was written. If the change reaches into the ending, all is ending.
   * @param {string} rest
   */
  split(rest) {
    const { ending } = this.story;
    if (!rest.endsWith(ending)) return { ending: rest, written: "" };
    return { ending, written: rest.slice(0, rest.length - ending.length) };
  }

  /**
   * Keep one beginning of several.
   * @param {number} index
   */
  keep(index) {
    this.history.push({ ...this.story, drafts: [this.story.drafts[index]] });
    this.render();
    announce(`kept beginning ${index + 1}`);
    byId("write").focus();
  }

  edit() {
    this.view.isEditing = true;
    this.render();
    byId("ending").focus();
  }

  stopEditing() {
    this.finishEditing();
    byId("edit").focus();
  }

  /** Take over what was typed as the ending. */
  finishEditing() {
    if (!this.view.isEditing) return;
    this.view.isEditing = false;
    const { ending } = this.view;
    const [draft, ...others] = this.story.drafts;
    if (ending !== this.story.ending) {
      const change = { how: "the ending was edited", written: draft?.written ?? "", ending };
      this.history.push({
        ending,
        drafts: draft && !others.length ? [changedByHand(draft, change)] : [],
      });
    }
    this.render();
  }

  /** @param {"undo" | "redo"} way */
  travel(way) {
    if (this.writing) return;
    const wasUntouched = this.view.isEditing && this.view.ending === this.story.ending;
    this.finishEditing();
    if (way === "undo" && wasUntouched && this.story.drafts.length) return; // all there was to undo
    if (this.history[way]()) announce(way === "undo" ? "undone" : "done again");
    this.view.isEditing = false;
    this.render();
    if (document.activeElement === document.body) byId("write").focus({ preventScroll: true });
  }

  /** @param {KeyboardEvent} event */
  undoByKey(event) {
    const elsewhere = event.target instanceof Element && event.target.closest(WITH_ITS_OWN_UNDO);
    if (byId("story").hidden || elsewhere || !(event.ctrlKey || event.metaKey)) return;
    const key = event.key.toLowerCase();
    const isCtrlY = key === "y" && event.ctrlKey; // with the key Command a browser does another thing
    if (key !== "z" && !isCtrlY) return;
    event.preventDefault();
    this.travel(isCtrlY || event.shiftKey ? "redo" : "undo");
  }

  render() {
    const { past, future } = this.history;
    this.view.render(this.story, { canUndo: past.length > 0, canRedo: future.length > 0 });
    byId("status").textContent = statusOf(this.story);
  }
}
