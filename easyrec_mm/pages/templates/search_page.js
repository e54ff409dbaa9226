"use strict";
{
  const MOST_BYTES = {{ most_bytes }};
  const at = (id) => document.getElementById(id);
  const valueOf = (id) => (at(id) ? at(id).value.trim() : "");
  // The picture of the query: a file that was chosen, pasted or dropped.
  let picture = null;
  let asked = 0;

  const make = (name, text = "", attributes = {}) => {
    const element = document.createElement(name);
    element.textContent = text;
    for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
    return element;
  };

  const tell = (text, isProblem = false) => {
    at("status").textContent = text;
    at("status").classList.toggle("problem", isProblem);
  };

  const pictureOf = (key) => {
    const image = make("img", "", { alt: `picture of ${key}`, loading: "lazy" });
    image.addEventListener("error", () => image.replaceWith(make("div", "no picture", { class: "none" })));
    image.src = `picture?key=${encodeURIComponent(key)}`;
    return image;
  };

  const show = (hit, rank) => {
    const figure = make("figure", "", { "data-key": hit.key });
    const caption = make("figcaption");
    const figures = hit.score === null ? "" : `score ${hit.score.toFixed(4)}, `;
    caption.append(make("b", `${rank} `), `${figures}cosine ${hit.cosine.toFixed(4)}, distance ${hit.distance.toPrecision(3)}`);
    if (hit.duplicate) caption.append(" ", make("mark", hit.duplicate));
    caption.append(make("div", hit.key));
    const values = make("dl");
    for (const [name, value] of Object.entries(hit.values)) values.append(make("dt", name), make("dd", String(value)));
    const more = make("button", "More like this", { type: "button" });
    more.addEventListener("click", () => {
      clearPicture();
      if (at("text")) at("text").value = "";
      at("key").value = hit.key;
      search();
      scrollTo({ top: 0 });
    });
    figure.append(pictureOf(hit.key), caption, values, more);
    at("results").append(figure);
  };

  const clearPicture = () => {
    picture = null;
    if (at("picture")) at("picture").value = "";
    showQuery();
  };

  const showQuery = () => {
    at("query").replaceChildren();
    if (picture) {
      const image = make("img", "", { alt: "picture of the query" });
      image.addEventListener("load", () => URL.revokeObjectURL(image.src));
      image.addEventListener("error", () => { URL.revokeObjectURL(image.src); image.remove(); });
      image.src = URL.createObjectURL(picture);
      const remove = make("button", "Remove picture", { type: "button" });
      remove.style.width = "auto";
      remove.addEventListener("click", clearPicture);
      at("query").append(image, make("span", picture.name || "pasted picture"), remove);
    }
  };

  const take = (file) => {
    if (!file || !at("picture")) return;
    picture = file;
    at("key").value = "";
    showQuery();
    search();
  };

  const search = async () => {
    const number = ++asked;
    const parameters = new URLSearchParams({ k: valueOf("k") });
    for (const name of ["text", "key", "filter"]) if (valueOf(name)) parameters.set(name, valueOf(name));
    if (at("rank") && at("rank").checked) parameters.set("rank", "1");
    if (picture && picture.size > MOST_BYTES) {
      at("results").replaceChildren();
      return tell(`the picture has more than ${MOST_BYTES >> 20} MiB; make it smaller`, true);
    }
    tell("Searching …");
    let answer;
    try {
      const response = await fetch(`search?${parameters}`, { method: "POST", body: picture });
      answer = await response.json();
      // Every problem is told in the answer, and problems of a user are no errors of the page.
    } catch (error) {
      answer = { error: "the server does not answer; is the command still running?" };
    }
    if (number !== asked) return;
    at("results").replaceChildren();
    if (answer.error) return tell(answer.error, true);
    tell(answer.hits.length ? `${answer.hits.length} results in ${Math.round(answer.seconds * 1000)} ms` : "No item fulfils the filter.");
    answer.hits.forEach((hit, place) => show(hit, place + 1));
  };

  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  if (at("picture")) {
    at("picture").addEventListener("change", () => take(at("picture").files[0]));
    addEventListener("paste", (event) => {
      const file = [...event.clipboardData.files].find((item) => item.type.startsWith("image/"));
      if (file) {
        event.preventDefault();
        take(file);
      }
    });
    addEventListener("dragover", (event) => {
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    addEventListener("dragleave", () => document.body.classList.remove("dropping"));
    addEventListener("drop", (event) => {
      event.preventDefault();
      document.body.classList.remove("dropping");
      take(event.dataTransfer.files[0]);
    });
  }
}
