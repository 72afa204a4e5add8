// From values to pixels.

/** A linear scale: from the domain [a, b] to the pixels [p, q]; `invert` goes back. */
export function linear([a, b], [p, q]) {
  const width = b - a || 1;
  const scale = (value) => p + ((value - a) / width) * (q - p);
  scale.invert = (pixel) => a + ((pixel - p) / (q - p || 1)) * width;
  scale.ticks = (num) => niceTicks(a, b, num);
  return scale;
}

/** A logarithmic scale; what is below the domain sits at its lower end. */
export function logarithmic([a, b], [p, q]) {
  const inner = linear([Math.log(a), Math.log(b)], [p, q]);
  const scale = (value) => inner(Math.log(Math.max(value, a)));
  scale.invert = (pixel) => Math.exp(inner.invert(pixel));
  scale.ticks = (num) => decades(a, b, num);
  return scale;
}

/** About `num` round values in [low, high]. */
export function niceTicks(low, high, num = 5) {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(1, num);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough) ?? 10 * power;
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) ticks.push(k * step);
  return ticks.map((tick) => Number(tick.toPrecision(12)));
}

function decades(low, high, num) {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  const each = Math.max(1, Math.ceil((last - first + 1) / Math.max(1, num)));
  const ticks = [];
  for (let k = first; k <= last; k += each) ticks.push(10 ** k);
  return ticks.length >= 2 ? ticks : niceTicks(low, high, Math.min(num, 3)).filter((tick) => tick > 0);
}

/** Which of `num` labels to show so that they do not touch: every k-th, and the last. */
export function sparse(num, most) {
  const each = Math.max(1, Math.ceil(num / Math.max(1, most)));
  return (index) => index % each === 0;
}

/** A square-root scale from [0, b]: what is small gets more room; `invert` goes back. */
export function rooted([a, b], [p, q]) {
  const inner = linear([Math.sqrt(Math.max(a, 0)), Math.sqrt(Math.max(b, 0))], [p, q]);
  const scale = (value) => inner(Math.sqrt(Math.max(value, 0)));
  scale.invert = (pixel) => Math.max(0, inner.invert(pixel)) ** 2;
  scale.ticks = (num) => {
    const ticks = niceTicks(a, b, num);
    const small = ticks[1] > 0 ? [ticks[1] / 10, ticks[1] / 4].map((tick) => Number(tick.toPrecision(1))) : [];
    return [...new Set([...ticks, ...small])].sort((one, other) => one - other);
  };
  return scale;
}
