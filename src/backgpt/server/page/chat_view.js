/** How a chat looks: the newest exchange on top, what came before a message above it. */

import { button, byId, make } from "./dom.js";
import { LeftwardText } from "./leftward.js";
import { copyExactly } from "./sheet.js";

/**
 * @typedef {import("./chat.js").Exchange} Exchange
 * @typedef {import("./chat.js").Message} Message
 * @typedef {import("./chat.js").Mode} Mode
 */

/** @type {Record<Mode, {says: string, label: string, send: string}>} */
const MODES = {
  ask: { says: "You answer, it asks.", label: "Your answer", send: "Answer" },
  rewind: {
    says: "You say how it ends, it writes the conversation that led there, last turn first.",
    label: "The last message",
    send: "Rewind",
  },
  reply: { says: "You ask, it answers, last word first.", label: "Your question", send: "Ask" },
};

/** @type {Record<Mode, Record<Message["role"], string>>} */
const SPEAKERS = {
  ask: { assistant: "you", user: "it asks" },
  rewind: { assistant: "assistant", user: "user" },
  reply: { assistant: "it answers", user: "you" },
};

export class ChatView {
  /** @param {{keep: (option: number) => void, again: () => void}} actions */
  constructor(actions) {
    this.actions = actions;
    /** @type {{element: HTMLElement, texts: LeftwardText[]}[]} the candidates being written */
    this.growing = [];
    /** @type {Mode} */
    this.mode = "ask";
  }

  /** @param {Mode} mode */
  showMode(mode) {
    const { says, label, send } = MODES[mode];
    byId("mode-says").textContent = says;
    byId("message-label").textContent = label;
    /** @type {HTMLTextAreaElement} */ (byId("message")).placeholder = label;
    byId("chat-send").textContent = send;
    byId("turns-field").hidden = mode !== "rewind";
  }

  /** @param {boolean} able */
  showWhetherAble(able) {
    byId("say").hidden = !able;
    const line = byId("no-chat");
    line.hidden = able;
    line.textContent =
      "This server has no chat model: start it with one, backgpt serve --model NAME.";
  }

  /**
   * Show exchanges; only the newest can be changed, and none while another is being written.
   * @param {Exchange[]} exchanges
   * @param {{writing?: boolean, canBringBack?: boolean}} options
   */
  render(exchanges, { writing = false, canBringBack = false }) {
    const elements = exchanges.map((exchange, place) => {
      const changes = place === 0 && !writing;
      const several = exchange.options.length > 1;
      const options = exchange.options.map((messages, option) => {
        const element = make("div", { class: several ? "option" : "" });
        for (const message of messages) this.add(element, exchange.mode, message);
        if (several && changes)
          element.append(button("Keep this one", () => this.actions.keep(option)));
        return element;
      });
      const element = this.exchange(exchange, options);
      if (changes) {
        element.append(button("Write it again", this.actions.again, { class: "quiet again" }));
      }
      return element;
    });
    byId("exchanges").replaceChildren(...elements);
    byId("new-chat").hidden = writing || !exchanges.length;
    byId("last-chat").hidden = writing || !canBringBack;
  }

  /** @param {Exchange[]} exchanges the first is being written */
  startWriting([newest, ...older]) {
    this.render(older, { writing: true });
    this.mode = newest.mode;
    this.growing = newest.options.map(() => ({
      element: make("div", { class: newest.options.length > 1 ? "option growing" : "growing" }),
      texts: [],
    }));
    const elements = this.growing.map(({ element }) => element);
    const exchange = this.exchange(newest, elements);
    byId("exchanges").prepend(exchange);
    byId("chat-status").textContent = "writing";
    byId("chat-send").hidden = true;
    byId("chat-stop").hidden = false;
    byId("chat-stop").focus({ preventScroll: true });
    exchange.scrollIntoView({ block: "nearest" }); // in a low window it is below the fold
  }

  /**
   * Put a piece in front of a candidate's message; a later turn stands above the earlier.
   * @param {number} option
   * @param {{turn: number, role: Message["role"], text: string}} piece
   */
  prepend(option, { turn, role, text }) {
    const { element, texts } = this.growing[option];
    while (texts.length <= turn)
      texts.push(this.add(element, this.mode, { role, content: "" }, "above"));
    texts[texts.length - 1].prepend(text);
  }

  /** @param {string} status */
  endWriting(status) {
    const hadFocus =
      document.activeElement === byId("chat-stop") || document.activeElement === document.body;
    byId("chat-status").textContent = status;
    byId("chat-stop").hidden = true;
    byId("chat-send").hidden = false;
    if (hadFocus) byId("message").focus({ preventScroll: true });
  }

  /**
   * @param {Exchange} exchange
   * @param {HTMLElement[]} options
   */
  exchange({ mode, said, goesOn }, options) {
    const element = make("article", {
      class: goesOn ? "exchange" : "exchange first",
      "aria-label": mode,
    });
    if (mode !== "reply") element.append(...options);
    this.add(element, mode, said).root.classList.add("said");
    if (mode === "reply") element.append(...options);
    return element;
  }

  /**
   * Add a message to an element.
   * @param {HTMLElement} parent
   * @param {Mode} mode
   * @param {Message} message
   * @param {"above" | "below"} [where]
   */
  add(parent, mode, { role, content }, where = "below") {
    const lines = make("div", { class: "lines" });
    const speaker = SPEAKERS[mode][role] ?? role;
    const element = make(
      "div",
      { class: "message" },
      make("p", { class: "speaker" }, speaker),
      lines,
    );
    if (where === "above") parent.prepend(element);
    else parent.append(element);
    lines.addEventListener("copy", (event) => copyExactly(event, lines));
    const text = new LeftwardText(lines);
    text.set(content);
    return text;
  }
}
