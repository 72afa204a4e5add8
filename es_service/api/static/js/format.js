// Numbers as people read them. A value that is missing is a dash, never a zero.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const NONE = "–";
const GAP = "\u00a0"; // between a number and its unit, where no line may break

function missing(value) {
  return value === null || value === undefined || Number.isNaN(value);
}

/** 28,000 */
export function count(value) {
  return missing(value) ? NONE : whole.format(value);
}

/** 56.2 %; a half goes to the even digit, as the command line has it. */
export function percent(share, digits = 1) {
  if (missing(share)) return NONE;
  const scaled = 100 * share * 10 ** digits;
  const rounded = Math.abs(scaled % 1) === 0.5 ? 2 * Math.round(scaled / 2) : Math.round(scaled);
  return `${((rounded || 0) / 10 ** digits).toFixed(digits)}${GAP}%`;
}

/** Four digits that say something: 0.8860, 12.35, 1.2e-7 */
export function value(number) {
  if (missing(number)) return NONE;
  if (Number.isInteger(number)) return count(number);
  const size = Math.abs(number);
  if (size < 1e-4 || size >= 1e6) return number.toExponential(1);
  return number.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : size >= 0.1 ? 3 : 4);
}

/** Short, for axes: 0.5, 20, 1.2k */
export function tick(number) {
  const size = Math.abs(number);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return number.toExponential(0).replace("e+", "e");
  if (size >= 10_000) return `${Number((number / 1000).toFixed(1))}k`;
  return String(Number(number.toPrecision(3)));
}

/** 29.5 s, 4 min 12 s, 1 h 20 min */
export function seconds(number) {
  if (missing(number)) return NONE;
  if (number < 10) return `${number.toFixed(number < 1 ? 2 : 1)}${GAP}s`;
  if (number < 100) return `${number.toFixed(1)}${GAP}s`;
  const minutes = Math.floor(Math.round(number) / 60);
  if (minutes < 60) return `${minutes}${GAP}min ${Math.round(number) - 60 * minutes}${GAP}s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours}${GAP}h ${minutes % 60}${GAP}min` : `${Math.round(hours / 24)}${GAP}days`;
}

/** How long ago, roughly: just now, 40 s ago, 3 min ago, 2 h ago, 5 days ago */
export function ago(number) {
  if (missing(number)) return NONE;
  if (number < 3) return "just now";
  if (number < 90) return `${Math.round(number)}${GAP}s ago`;
  if (number < 5400) return `${Math.round(number / 60)}${GAP}min ago`;
  if (number < 172_800) return `${Math.round(number / 3600)}${GAP}h ago`;
  return `${Math.round(number / 86_400)}${GAP}days ago`;
}

/** One word for one, another for all other numbers: 1 sample, 2 samples */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
