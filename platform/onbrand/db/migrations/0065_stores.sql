-- depends: 0050_redraw
-- Stores of any region.
set role onbrand_owner;

alter table app.brands drop constraint brands_home_region_check,
  add constraint brands_home_region_check check (home_region ~ '^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$');

reset role;
