/** The story: an ending, the beginnings written for it, and what is done with them. */

import { request } from "./api.js";
import { announce, byId, showProblem } from "./dom.js";
import { keep } from "./draft.js";
import { History } from "./history.js";
import { copy, saveFile } from "./save.js";
import { Settings, UNHEEDED } from "./settings.js";
import { StoryView } from "./story_view.js";
import { fromFirstWord, wordCount } from "./text.js";
import { openWordMenu } from "./word_menu.js";
import { write } from "./writing.js";

/**
 * `steps` are the requests that made it, with the number of the choice that was taken.
 * @typedef {{written: string, finish: import("./writing.js").Finish, steps: object[]}} Draft
 * @typedef {{ending: string, drafts: Draft[]}} Story never changed, only replaced
 */

export class StoryDesk {
  constructor() {
    this.settings = new Settings(/** @type {HTMLFormElement} */ (byId("settings")));
    this.view = new StoryView({
      chooseWord: (index, placed, word) => this.openMenu(index, placed, word),
      keep: (index) => this.keep(index),
    });
    const kept = keep("backgpt.story", () => ({
      story: this.story,
      typed: this.view.isEditing ? this.view.ending : null,
    }));
    const typed = kept ? kept.typed : this.view.ending;
    /** @type {History<Story>} */
    this.history = new History(kept?.story ?? { ending: typed, drafts: [] });
    /** @type {AbortController | null} */
    this.writing = null;
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
    on("edit", () => this.edit());
    on("undo", () => this.travel("undo"));
    on("redo", () => this.travel("redo"));
    on("copy-seed", () => copy(`${this.seed}`, "seed"));
    on("copy-text", () => copy(this.textOf(this.story.drafts[0]), "text"));
    on("save-text", () => this.save("txt"));
    on("save-json", () => this.save("json"));
    on("print", () => print());
    byId("story").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.write();
      if (event.key !== "Escape" || event.target !== byId("ending")) return;
      this.finishEditing();
      byId("edit").focus();
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
    this.run(this.textOf(draft), base);
  }

  /**
   * Write everything before the rest of a text; `base` is what stays.
   * @param {string} rest
   * @param {{ending: string, written: string, steps: object[]}} base
   */
  async run(rest, base) {
    showProblem("");
    let body;
    let unheeded;
    try {
      ({ body, unheeded } = this.settings.before(rest));
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      showProblem(error.message);
      return;
    }
    this.writing = new AbortController();
    this.view.startWriting(base.written + base.ending, base.ending, body.n);
    announce("writing");
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
      this.endWriting(body, base, end);
      showProblem(end.problem || (unheeded ? UNHEEDED : ""));
    }
  }

  /**
   * Take over what came.
   * @param {import("./settings.js").Completion} body
   * @param {{ending: string, written: string, steps: object[]}} base
   * @param {{beginnings: import("./writing.js").Beginning[]}} end
   */
  endWriting(body, base, { beginnings }) {
    const drafts = beginnings.map(({ written, finish }, choice) => ({
      written: written + base.written,
      finish,
      steps: [...base.steps, { ...body, choice }],
    }));
    const came = beginnings.some(({ written, finish }) => written || finish === "stop");
    if (came) this.history.push({ ending: base.ending, drafts });
    this.render();
    this.view.endWriting();
    announce(
      came ? `done, ${drafts.map((draft) => wordCount(this.textOf(draft))).join(" and ")}` : "",
    );
  }

  /**
   * @param {number} index
   * @param {import("./leftward.js").Placed} placed
   * @param {HTMLElement} anchor
   */
  openMenu(index, placed, anchor) {
    const draft = this.story.drafts[index];
    const text = this.textOf(draft);
    const start = text.length - placed.fromEnd;
    const after = text.slice(start + placed.word.length);
    openWordMenu({
      anchor,
      word: placed.word,
      load: async (signal) => {
        const { model, suffix, backgpt } = this.settings.before(after).body;
        const body = { ...(model && { model }), suffix, n: 10, ...(backgpt && { backgpt }) };
        return (await request("v1/alternatives", body, signal)).data;
      },
      rewrite: () => this.writeBefore(text.slice(start), draft),
      take: (alternative) => {
        if (alternative.edge) this.beginWith(fromFirstWord(after), draft);
        else this.writeBefore(fromFirstWord(alternative.text) + after, draft);
      },
    });
  }

  /**
   * Write everything before `rest` again, the end of a draft's text or a change of it.
   * @param {string} rest
   * @param {Draft} draft
   */
  writeBefore(rest, draft) {
    this.run(rest, { ...this.split(rest), steps: draft.steps });
  }

  /**
   * Let the text begin here.
   * @param {string} rest
   * @param {Draft} draft
   */
  beginWith(rest, draft) {
    const { ending, written } = this.split(rest);
    this.history.push({ ending, drafts: [{ written, finish: "stop", steps: draft.steps }] });
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

  /** Take over what was typed as the ending. */
  finishEditing() {
    if (!this.view.isEditing) return;
    this.view.isEditing = false;
    const { ending } = this.view;
    const { drafts } = this.story;
    if (ending !== this.story.ending) {
      this.history.push({ ending, drafts: drafts.length === 1 ? drafts : [] });
    }
    this.render();
  }

  /** @param {"undo" | "redo"} way */
  travel(way) {
    if (this.writing) return;
    this.finishEditing();
    if (this.history[way]()) announce(way === "undo" ? "undone" : "done again");
    this.view.isEditing = false;
    this.render();
  }

  /** @param {KeyboardEvent} event */
  undoByKey(event) {
    const typing =
      event.target instanceof Element && event.target.closest("input, textarea, select");
    if (byId("story").hidden || typing || !(event.ctrlKey || event.metaKey)) return;
    if (event.key.toLowerCase() !== "z") return;
    event.preventDefault();
    this.travel(event.shiftKey ? "redo" : "undo");
  }

  /** @param {Draft} draft */
  textOf(draft) {
    return draft.written + this.story.ending;
  }

  /** The seed of what was written last. */
  get seed() {
    return /** @type {any} */ (this.story.drafts[0]?.steps.at(-1))?.seed;
  }

  /** @param {"txt" | "json"} kind */
  save(kind) {
    const [draft] = this.story.drafts;
    const text = this.textOf(draft);
    if (kind === "txt") return saveFile("story.txt", text, "text/plain;charset=utf-8");
    const { ending } = this.story;
    const record = {
      text,
      ending,
      finish_reason: draft.finish,
      seed: this.seed,
      steps: draft.steps,
    };
    return saveFile("story.json", `${JSON.stringify(record, null, 2)}\n`, "application/json");
  }

  render() {
    const { past, future } = this.history;
    this.view.render(this.story, { canUndo: past.length > 0, canRedo: future.length > 0 });
    const count = this.story.drafts.length;
    const [draft] = this.story.drafts;
    const words = count === 1 ? wordCount(this.textOf(draft)) : `${count} beginnings`;
    byId("status").textContent = count ? `${words} · seed ${this.seed}` : "";
  }
}
