/** The settings of the story: from the fields to a request. */

import { prefersStillness } from "./dom.js";
import { abilities, offerModels } from "./models.js";
import { drawSeed, wholeNumber } from "./numbers.js";
import { firstWords } from "./text.js";

/** What is given of a text, for each token of the model's context: the rest is room to write. */
const SHARE_TO_GO_ON_FROM = { words: 0.3, ids: 0.6 };

const WORDS_TO_CHOOSE_FROM = 10;

export const UNHEEDED =
  "So much text follows that the model reads its first words only: then it cannot heed " +
  "an opening, a length or words to have.";

/**
 * @typedef {object} Completion what is asked of /v1/completions
 * @property {string} [model]
 * @property {string} suffix
 * @property {string} [prompt] the opening of a bridge
 * @property {number} n
 * @property {number} temperature
 * @property {number} seed
 * @property {number} [max_tokens]
 * @property {{words?: string[], length?: string, continues?: boolean}} [backgpt]
 */

export class Settings {
  /** @param {HTMLFormElement} form */
  constructor(form) {
    this.form = form;
    /** @type {import("./models.js").Model[]} */
    this.models = [];
    this.field("model").addEventListener("change", () => this.showOpening());
    this.field("temperature").addEventListener("input", () => this.showTemperature());
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  /** @param {import("./models.js").Model[]} models */
  offer(models) {
    this.models = models.filter((model) => abilities(model).directions.includes("backward"));
    offerModels(this.field("model"), this.models);
    this.showOpening();
  }

  /** What the chosen model can do. */
  get abilities() {
    return abilities(this.models.find(({ id }) => id === this.field("model").value));
  }

  /** How many pieces are shown in a second; 0 is as they come. */
  get pace() {
    return prefersStillness() ? 0 : Number(this.field("pace").value);
  }

  /**
   * Return a request for what stands before the rest of a text. A long rest is given by its first
   * words, so that there is room to write; then there can be no hints, and `unheeded` says whether
   * some were wanted. Raises RangeError for a field that does not hold what it should.
   * A rest that begins `inOpening` gets no opening in front.
   * @param {string} rest
   * @param {{inOpening: boolean}} where
   * @returns {{body: Completion, unheeded: boolean}}
   */
  before(rest, { inOpening }) {
    const { given, continues } = this.given(rest);
    const { opening } = this.hints;
    const body = {
      ...given,
      ...(opening && !continues && !inOpening && { prompt: opening }),
      n: Number(this.field("n").value),
      temperature: Number(this.field("temperature").value),
      seed: wholeNumber(this.field("seed"), "Seed", 0) ?? drawSeed(),
      ...this.room,
    };
    return { body, unheeded: continues && Object.keys(this.hints).length > 0 };
  }

  /**
   * Return a request for the words that may stand directly before the rest of a text. Only a model
   * that takes hints can be told what else it should have.
   * @param {string} rest
   */
  wordsBefore(rest) {
    const { given, continues } = this.given(rest);
    const { backgpt, ...untold } = given;
    const told = continues || this.abilities.hints;
    return { ...(told ? given : untold), n: WORDS_TO_CHOOSE_FROM };
  }

  /**
   * Return what is told of the rest of a text, and whether more follows.
   * @param {string} rest
   */
  given(rest) {
    const { block_size } = this.abilities;
    const { words, ids } = SHARE_TO_GO_ON_FROM;
    const most = { words: Math.floor(block_size * words), ids: block_size * ids };
    const suffix = firstWords(rest, most);
    const continues = suffix !== rest;
    const { opening, ...hints } = this.hints;
    const special = continues ? { continues } : hints;
    const given = {
      ...(this.field("model").value && { model: this.field("model").value }),
      suffix,
      ...(Object.keys(special).length && { backgpt: special }),
    };
    return { given, continues };
  }

  /**
   * What the text should be like: its opening, if the model can reach it, words, and its length.
   * @returns {{opening?: string, words?: string[], length?: string}}
   */
  get hints() {
    const opening = this.field("opening").value;
    const words = this.field("words")
      .value.split(/[,;]/u)
      .map((/** @type {string} */ word) => word.trim())
      .filter(Boolean);
    const length = this.field("length").value;
    return {
      ...(this.abilities.bridges && opening.trim() && { opening }),
      ...(words.length && { words }),
      ...(length && { length }),
    };
  }

  get room() {
    const most = wholeNumber(this.field("max_tokens"), "Most tokens", 1);
    return most === undefined ? {} : { max_tokens: most };
  }

  /**
   * @param {string} name
   * @returns {any} a field, or the radio buttons of that name
   */
  field(name) {
    return this.form.elements.namedItem(name);
  }

  showOpening() {
    for (const field of this.form.querySelectorAll("[data-bridge]")) {
      /** @type {HTMLElement} */ (field).hidden = !this.abilities.bridges;
    }
  }

  showTemperature() {
    const output = this.form.querySelector("output");
    if (output) output.textContent = this.field("temperature").value;
  }
}
