/** Both ways: how surprised each direction is by each word of a text. */

import { ApiError, request } from "./api.js";
import { announce, byId, make, showProblem } from "./dom.js";
import { abilities, offerModels } from "./models.js";
import { rove, stopAt } from "./roving.js";

/**
 * @typedef {"backward" | "forward"} Direction
 * @typedef {{text: string} & Partial<Record<Direction, number | null>>} Span
 * @typedef {{logprob: number, nats_per_token: number | null, bits_per_byte: number | null,
 *   edge: number | null}} Total
 */

/** @type {Direction[]} */
const DIRECTIONS = ["backward", "forward"];
const MOST_NATS = 10; // of one word: from here on no mark is thicker

export class BothWays {
  constructor() {
    const form = /** @type {HTMLFormElement} */ (byId("measure"));
    this.text = /** @type {HTMLTextAreaElement} */ (byId("text-both"));
    this.model = /** @type {HTMLSelectElement} */ (form.elements.namedItem("model"));
    this.reading = new AbortController();
    form.addEventListener("input", () => this.forget());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.read();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.read();
    });
    const words = byId("surprise");
    rove(words, () => [/** @type {HTMLElement[]} */ ([...words.querySelectorAll(".word")])]);
    for (const name of ["focusin", "pointerover"]) {
      words.addEventListener(name, ({ target }) => {
        if (target instanceof HTMLElement && target.classList.contains("word")) this.tell(target);
      });
    }
  }

  /** @param {import("./models.js").Model[]} models */
  offer(models) {
    const both = models.filter((model) => abilities(model).directions.length > 1);
    offerModels(this.model, both.length ? both : models);
  }

  /** Show no numbers: they would be of another text, or of another model. */
  forget() {
    this.reading.abort();
    byId("both-status").textContent = "";
    byId("measured").hidden = true;
  }

  /** Measure the text in the field and show it. */
  async read() {
    const input = this.text.value;
    showProblem("");
    this.reading.abort();
    if (!input.trim()) {
      showProblem("Type a text first.");
      this.text.focus();
      return;
    }
    this.reading = new AbortController();
    const { signal } = this.reading;
    byId("both-status").textContent = "reading";
    const body = { ...(this.model.value && { model: this.model.value }), input };
    try {
      const [found] = (await request("v1/score", body, signal)).data;
      this.show(found);
      announce(`done, ${byId("verdict").textContent}`);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      showProblem(error.message);
    }
    byId("both-status").textContent = "";
  }

  /** @param {{spans: Span[]} & Partial<Record<Direction, Total>>} found */
  show(found) {
    const marks = byId("surprise");
    marks.replaceChildren(...paragraphs(found.spans));
    byId("totals").replaceChildren(...DIRECTIONS.flatMap((way) => totalsOf(way, found[way])));
    byId("verdict").textContent = verdict(found.backward, found.forward);
    byId("readout").textContent = "Point at a word, or go to it, to read its numbers.";
    byId("measured").hidden = false;
    const first = marks.querySelector(".word");
    if (first instanceof HTMLElement) stopAt(marks, first, false);
  }

  /** @param {HTMLElement} word */
  tell(word) {
    const values = DIRECTIONS.map((way) => `${way} ${word.dataset[way] ?? "unknown"}`).join(", ");
    byId("readout").textContent = `“${word.textContent}”: ${values} nats`;
  }
}

/**
 * Return a paragraph for each line of the text, its words marked.
 * @param {Span[]} spans
 */
function paragraphs(spans) {
  let paragraph = make("p", { dir: "auto" });
  const all = [paragraph];
  for (const span of spans) {
    const word = span.text.trimStart();
    const lines = span.text.slice(0, span.text.length - word.length).split("\n");
    paragraph.append(lines[0]);
    for (const space of lines.slice(1)) {
      paragraph = make("p", { dir: "auto" }, space);
      all.push(paragraph);
    }
    paragraph.append(marked(word, span));
  }
  return all;
}

/**
 * @param {string} word
 * @param {Span} span
 */
function marked(word, span) {
  const element = make("span", { class: "word" }, word);
  for (const way of DIRECTIONS) {
    const nats = Math.max(0, -(span[way] ?? 0));
    element.style.setProperty(`--${way}`, `${Math.min(nats / MOST_NATS, 1)}`);
    if (typeof span[way] === "number") element.dataset[way] = nats.toFixed(2);
  }
  return element;
}

/**
 * @param {Direction} way
 * @param {Total} [total]
 */
function totalsOf(way, total) {
  if (!total) return [];
  const { nats_per_token, bits_per_byte, logprob, edge } = total;
  const name = make("th", { scope: "row" }, make("span", { class: `key ${way}` }), ` ${way}`);
  const values = [number(nats_per_token, 3), number(bits_per_byte, 3)];
  const rest = [number(-logprob, 1), number(edge === null ? null : -edge, 2)];
  return [make("tr", {}, name, ...[...values, ...rest].map((value) => make("td", {}, value)))];
}

/**
 * @param {number | null} value
 * @param {number} digits
 */
function number(value, digits) {
  return typeof value === "number" ? value.toFixed(digits) : "–";
}

/**
 * @param {Total} [backward]
 * @param {Total} [forward]
 */
function verdict(backward, forward) {
  if (!backward || !forward) return `This model only runs ${backward ? "backward" : "forward"}.`;
  const more = (backward.nats_per_token ?? 0) - (forward.nats_per_token ?? 0);
  const [surprised, calm] = more > 0 ? DIRECTIONS : ["forward", "backward"];
  const by = `${Math.abs(more).toFixed(3)} nats per token`;
  return `It was more surprised ${surprised} than ${calm}, by ${by}.`;
}
