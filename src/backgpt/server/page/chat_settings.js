/** The settings of BackChat: from the fields to a request. */

import { abilities, offerModels } from "./models.js";
import { decimal, drawSeed, wholeNumber } from "./numbers.js";

export class ChatSettings {
  /** @param {HTMLFormElement} form */
  constructor(form) {
    this.form = form;
    /** @type {import("./models.js").Model[]} */
    this.models = [];
  }

  /**
   * Offer the models that can chat; return whether there is one.
   * @param {import("./models.js").Model[]} models
   */
  offer(models) {
    this.models = models.filter((model) => abilities(model).chat);
    offerModels(this.field("model"), this.models);
    return this.models.length > 0;
  }

  /**
   * @param {string} name
   * @returns {any} a field, or the radio buttons of that name
   */
  field(name) {
    return this.form.elements.namedItem(name);
  }

  /**
   * Return a request; a field that is empty is left to the server. Raises RangeError for a field
   * that does not hold what it should.
   * @param {import("./chat.js").Exchange} exchange
   */
  request({ mode, said, context, options }) {
    const temperature = this.number(decimal, "temperature", "Temperature");
    const rewinds = mode === "rewind";
    const turns = rewinds ? this.number(wholeNumber, "turns", "Messages to write") : undefined;
    return {
      model: this.field("model").value,
      messages: [said],
      n: options.length,
      ...(temperature !== undefined && { temperature }),
      seed: wholeNumber(this.field("seed"), "Seed", 0) ?? drawSeed(),
      stream_options: { order: "prepend" },
      backgpt: { mode, ...(turns && { turns }), ...(context && { context }) },
    };
  }

  /**
   * Read a field by the range that it names.
   * @param {typeof decimal} read
   * @param {string} name
   * @param {string} label
   */
  number(read, name, label) {
    const field = this.field(name);
    return read(field, label, Number(field.min), Number(field.max));
  }
}
