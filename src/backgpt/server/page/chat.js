/** BackChat: you answer, it asks; or a whole conversation rewound; or a reply. */

import { ApiError, stream } from "./api.js";
import { ChatSettings } from "./chat_settings.js";
import { ChatView } from "./chat_view.js";
import { announce, byId, prefersStillness, showProblem } from "./dom.js";
import { keep } from "./draft.js";
import { Pace } from "./pace.js";

/**
 * @typedef {"ask" | "rewind" | "reply"} Mode
 * @typedef {{role: "user" | "assistant", content: string}} Message
 * One thing you said and what was written for it: `options` are the candidates, each the messages
 * that were written, in reading order. One that `goesOn` stands before the exchange said before it.
 * @typedef {object} Exchange
 * @property {Mode} mode
 * @property {Message} said
 * @property {Message[][]} options
 * @property {boolean} goesOn
 * @property {string} context
 */

const PIECES_PER_SECOND = 22;

export class Chat {
  constructor() {
    const form = /** @type {HTMLFormElement} */ (byId("say"));
    this.settings = new ChatSettings(form);
    this.view = new ChatView({
      keep: (option) => this.keep(option),
      again: () => this.again(),
    });
    const kept = keep("backgpt.chat", () => ({
      exchanges: this.exchangesToKeep(),
      ended: this.ended,
    }));
    /** @type {Exchange[]} newest first */
    this.exchanges = kept?.exchanges ?? [];
    /** @type {Exchange[]} the conversation before this one, as long as this one is empty */
    this.ended = kept?.ended ?? [];
    /** @type {AbortController | null} */
    this.writing = null;
    /** @type {Exchange[] | null} as they will be if what is written now is stopped */
    this.unfinished = null;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.say();
    });
    form.addEventListener("change", () => this.view.showMode(this.mode));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.say();
    });
    byId("chat-stop").addEventListener("click", () => this.writing?.abort());
    byId("new-chat").addEventListener("click", () => this.begin());
    byId("last-chat").addEventListener("click", () => this.bringBack());
    this.view.showMode(this.mode);
    this.render();
  }

  /** @param {import("./models.js").Model[]} models */
  offer(models) {
    this.view.showWhetherAble(this.settings.offer(models));
  }

  /** @returns {Mode} */
  get mode() {
    return this.settings.field("mode").value;
  }

  /** Begin a new conversation; the last one can be brought back until something is said. */
  begin() {
    showProblem("");
    this.ended = this.exchanges;
    this.exchanges = [];
    this.render();
    announce("a new conversation");
    byId("message").focus();
  }

  bringBack() {
    showProblem("");
    this.exchanges = this.ended;
    this.ended = [];
    this.render();
    announce("the last conversation is back");
    byId("message").focus();
  }

  render() {
    this.view.render(this.exchanges, { canBringBack: this.ended.length > 0 });
  }

  /** The exchanges, with what is being written as if it were stopped now: the page may go. */
  exchangesToKeep() {
    if (!this.unfinished) return this.exchanges;
    const [newest, ...older] = this.unfinished;
    const options = newest.options.filter((messages) => messages.length);
    return options.length ? [{ ...newest, options }, ...older] : this.exchanges;
  }

  /** Say what stands in the field. */
  say() {
    const content = this.settings.field("message").value.trim();
    if (this.writing) return;
    if (!content) {
      showProblem("Say something first.");
      byId("message").focus();
      return;
    }
    const { mode } = this;
    const [newest] = this.exchanges;
    const context = this.settings.field("context").value.trim();
    const goesOn = mode === "ask" && newest?.mode === "ask" && newest.context === context;
    if (goesOn && newest.options.length > 1) {
      showProblem("Keep one of the candidates first: the conversation goes on from it.");
      return;
    }
    const role = mode === "reply" ? "user" : "assistant";
    this.write({ mode, said: { role, content }, options: [], goesOn, context }, this.exchanges);
  }

  /** Write for the newest exchange once more. */
  again() {
    const [newest, ...older] = this.exchanges;
    if (newest && !this.writing) this.write({ ...newest, options: [] }, older);
  }

  /**
   * Keep one candidate of the newest exchange.
   * @param {number} option
   */
  keep(option) {
    if (this.writing) return;
    showProblem("");
    const [newest, ...older] = this.exchanges;
    this.exchanges = [{ ...newest, options: [newest.options[option]] }, ...older];
    this.render();
    byId("message").focus();
  }

  /**
   * @param {Exchange} asked
   * @param {Exchange[]} older
   */
  async write(asked, older) {
    showProblem("");
    const exchange = {
      ...asked,
      options: Array.from({ length: Number(this.settings.field("n").value) }, () => []),
    };
    let body;
    try {
      body = this.settings.request(exchange);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      showProblem(error.message);
      return;
    }
    this.writing = new AbortController();
    this.unfinished = [exchange, ...older];
    this.view.startWriting(this.unfinished);
    announce("writing");
    const { signal } = this.writing;
    let problem = "This page failed on what the server sent: try again.";
    try {
      problem = await this.follow(body, exchange, signal);
    } finally {
      this.writing = null;
      this.unfinished = null;
      this.endWriting(exchange, older, body.seed);
      const nothing = "No message came to its beginning: try again, or say something else.";
      showProblem(problem || (exchange.options.length || signal.aborted ? "" : nothing));
    }
  }

  /**
   * Take over what came.
   * @param {Exchange} exchange
   * @param {Exchange[]} older
   * @param {number} seed
   */
  endWriting(exchange, older, seed) {
    exchange.options = exchange.options.filter((messages) => messages.length);
    const came = exchange.options.length > 0;
    if (came) {
      this.exchanges = [exchange, ...older];
      this.ended = [];
      const field = this.settings.field("message");
      if (field.value.trim() === exchange.said.content) field.value = "";
    }
    this.render();
    this.view.endWriting(came ? `seed ${seed}` : "");
    announce(came ? "done" : "");
  }

  /**
   * Follow the stream into an exchange's options; return what went wrong, if anything.
   * @param {object} body
   * @param {Exchange} exchange
   * @param {AbortSignal} signal
   */
  async follow(body, { options }, signal) {
    const speed = () => (prefersStillness() ? 0 : PIECES_PER_SECOND);
    const paces = options.map((messages, option) => {
      let turn = -1;
      return new Pace(
        (/** @type {{turn: number, role: Message["role"], text: string}} */ piece) => {
          if (piece.turn > turn) messages.unshift({ role: piece.role, content: "" });
          turn = Math.max(turn, piece.turn);
          messages[0].content = piece.text + messages[0].content;
          this.view.prepend(option, piece);
        },
        speed,
      );
    });
    signal.addEventListener("abort", () => paces.forEach((one) => one.stop()));
    /** @type {ApiError | null} */
    let problem = null;
    /** @type {Map<number, Message[]>} what an option is in the end, where the server says so */
    const finals = new Map();
    try {
      const answer = stream("v1/chat/completions", body, signal, "write it again");
      for await (const { choices } of answer) {
        for (const { index, delta, backgpt } of choices ?? []) {
          const text = delta?.content ?? "";
          const { turn = 0, role = "user", messages } = backgpt ?? {};
          if (text) paces[index].push({ turn, role, text });
          if (messages) finals.set(index, messages);
        }
      }
    } catch (error) {
      if (!signal.aborted && !(error instanceof ApiError)) throw error;
      if (error instanceof ApiError) problem = error;
    }
    await Promise.all(paces.map((one) => one.shown()));
    if (!signal.aborted) for (const [index, messages] of finals) options[index] = messages;
    return problem?.message ?? "";
  }
}
